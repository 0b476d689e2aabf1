"""A QuPath project of the slides of a run, with a script that loads lesions and tiles into the images.

QuPath stores the objects of an image in a file that only QuPath can write (``data.qpdata``, serialised Java). So we
write the parts that are plain JSON, one entry per slide, and the objects as GeoJSON beside it, which a project script
loads. QuPath 0.5 and 0.6 read this format.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from wsi_ips.geometry import Scale, Size
from wsi_ips.provenance import atomic_write_json
from wsi_ips.results.overlay import RESEARCH

VERSION = "0.5.1"  # QuPath version of the project format
# Image server of QuPath by the reader that opened the slide here; Bio-Formats for all others.
PROVIDERS = {
    "openslide": ("qupath.lib.images.servers.openslide.OpenslideServerBuilder", ()),
    "tiffslide": ("qupath.lib.images.servers.bioformats.BioFormatsServerBuilder", ("--series", "0")),
}
PROJECT, SCRIPT, OBJECTS = "project.qpproj", "load_wsi_ips.groovy", "wsi-ips"
README = f"""QuPath project made by wsi-ips. {RESEARCH}.

1. Open {PROJECT} in QuPath (0.5 or newer). If the slides have moved, QuPath asks where they are.
2. Automate > Project scripts > {Path(SCRIPT).stem}, then Run > Run: it loads lesions and tiles into every image.

For a project of your own: open it, drag scripts/{SCRIPT} onto QuPath and run it. Images are found by the file names
of the slides. What you have drawn is kept.
"""


@dataclass(frozen=True)
class QuPathImage:
    """A slide in a project."""

    slide_id: str
    path: Path
    reader: str  # reader that opened it here
    size: Size  # size in QuPath: the scanned part of level 0
    mpp: Scale  # µm per pixel
    objects: Path  # lesions and tiles, ``.geojson.gz``
    thumbnail: bytes  # JPEG
    facts: Mapping[str, str]  # what QuPath lists beside the image, for example the slide's probability


def write_project(folder: Path, images: Sequence[QuPathImage], *, home: Path, created: datetime) -> None:
    """Write a project of at least one image into an empty folder; ``home`` is the project's final absolute path."""
    stamp = int(created.timestamp() * 1000)
    project = {
        "version": VERSION,
        "createTimestamp": stamp,
        "modifyTimestamp": stamp,
        "uri": (home / PROJECT).as_uri(),
        "lastID": len(images),
        "images": [_entry(number, image) for number, image in enumerate(images, 1)],
    }
    atomic_write_json(folder / PROJECT, project)
    for number, image in enumerate(images, 1):
        atomic_write_json(folder / "data" / str(number) / "server.json", _server(image))
        (folder / "data" / str(number) / "thumbnail.jpg").write_bytes(image.thumbnail)
    atomic_write_json(
        folder / OBJECTS / "slides.json", {"note": RESEARCH, "slides": [_listed(image) for image in images]}
    )
    for image in images:
        shutil.copyfile(image.objects, folder / OBJECTS / f"{image.slide_id}.geojson.gz")
    (folder / "scripts").mkdir()
    script = (files("wsi_ips.results") / "templates" / SCRIPT).read_text(encoding="utf-8")
    quoted = (home / OBJECTS).as_posix().replace("\\", "\\\\").replace("'", "\\'")
    (folder / "scripts" / SCRIPT).write_text(script.replace("@FOLDER@", quoted), encoding="utf-8")
    (folder / "README.txt").write_text(README, encoding="utf-8")


def _entry(number: int, image: QuPathImage) -> dict[str, Any]:
    return {
        "serverBuilder": _server(image),
        "entryID": number,
        "randomizedName": str(uuid.uuid5(uuid.NAMESPACE_URL, f"wsi-ips/{image.slide_id}")),
        "imageName": image.path.name,
        "metadata": {"wsi-ips slide": image.slide_id, **image.facts},
    }


def _server(image: QuPathImage) -> dict[str, Any]:
    # QuPath reads size, levels and scale from the file.
    provider, arguments = PROVIDERS.get(image.reader, PROVIDERS["tiffslide"])
    return {
        "builderType": "uri",
        "providerClassName": provider,
        "uri": image.path.absolute().as_uri(),
        "args": list(arguments),
    }


def _listed(image: QuPathImage) -> dict[str, Any]:
    return {
        "slide": image.slide_id,
        "file": image.path.name,
        "objects": f"{image.slide_id}.geojson.gz",
        "width": image.size.width,
        "height": image.size.height,
        "mpp_x": image.mpp.x,
        "mpp_y": image.mpp.y,
    }
