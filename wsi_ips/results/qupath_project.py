"""A QuPath project of the slides of a run, and the script that loads what was found into their images.

QuPath keeps objects of an image in a file only it can write (``data.qpdata``, serialised Java). So a project is made of
what is plain JSON, an entry per slide, and the objects lie beside it as GeoJSON for a script of the project to load.
Format as QuPath 0.5 to 0.6 reads it.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from wsi_ips.geometry import Scale, Size
from wsi_ips.results.frame import RESEARCH

VERSION = "0.5.1"
"""Version of QuPath whose format this is."""
PROVIDERS = {
    "openslide": ("qupath.lib.images.servers.openslide.OpenslideServerBuilder", ()),
    "tiffslide": ("qupath.lib.images.servers.bioformats.BioFormatsServerBuilder", ("--series", "0")),
}
"""Who opens a slide in QuPath, by the reader that opened it here; what OpenSlide does not read, Bio-Formats does."""
PROJECT, SCRIPT, OBJECTS = "project.qpproj", "load_wsi_ips.groovy", "wsi-ips"
README = f"""QuPath project made by wsi-ips. {RESEARCH}.

1. Open {PROJECT} in QuPath (0.5 or newer). If the slides have moved, QuPath asks where they are.
2. Automate > Project scripts > {Path(SCRIPT).stem}, then Run > Run: it loads lesions and tiles into every image.

For a project of your own: open it, drag scripts/{SCRIPT} onto QuPath and run it. Images are found by the names of the
slides' files. What you have drawn is left alone.
"""


@dataclass(frozen=True)
class QuPathImage:
    """One slide of a project.

    Attributes
    ----------
    slide_id
        Identity in the manifest.
    path
        The slide's file.
    reader
        Which reader opened it here.
    size
        Size as QuPath opens it: the scanned part of level 0.
    mpp
        µm per pixel.
    objects
        Lesions and tiles, ``.geojson.gz``.
    thumbnail
        JPEG.
    facts
        What QuPath lists beside the image, e.g. the slide's probability.
    """

    slide_id: str
    path: Path
    reader: str
    size: Size
    mpp: Scale
    objects: Path
    thumbnail: bytes
    facts: Mapping[str, str]


def write_project(folder: Path, images: Sequence[QuPathImage], *, home: Path, created: datetime) -> None:
    """Write a project into an empty folder.

    Parameters
    ----------
    folder
        Where to write.
    images
        At least one.
    home
        Where the project will lie, absolute: QuPath and the script are told.
    created
        Time the project was made.
    """
    stamp = int(created.timestamp() * 1000)
    project = {
        "version": VERSION,
        "createTimestamp": stamp,
        "modifyTimestamp": stamp,
        "uri": (home / PROJECT).as_uri(),
        "lastID": len(images),
        "images": [_entry(number, image) for number, image in enumerate(images, 1)],
    }
    _write_json(folder / PROJECT, project)
    for number, image in enumerate(images, 1):
        _write_json(folder / "data" / str(number) / "server.json", _server(image))
        (folder / "data" / str(number) / "thumbnail.jpg").write_bytes(image.thumbnail)
    _write_json(folder / OBJECTS / "slides.json", {"note": RESEARCH, "slides": [_listed(image) for image in images]})
    for image in images:
        shutil.copyfile(image.objects, folder / OBJECTS / _objects_name(image))
    (folder / "scripts").mkdir()
    (folder / "scripts" / SCRIPT).write_text(loader_script(home / OBJECTS), encoding="utf-8")
    (folder / "README.txt").write_text(README, encoding="utf-8")


def loader_script(objects: Path) -> str:
    """The Groovy script, with the folder where it looks for the objects of slides."""
    text = (files("wsi_ips.results") / "templates" / SCRIPT).read_text(encoding="utf-8")
    return text.replace("@FOLDER@", objects.as_posix().replace("\\", "\\\\").replace("'", "\\'"))


def _entry(number: int, image: QuPathImage) -> dict[str, Any]:
    return {
        "serverBuilder": _server(image),
        "entryID": number,
        "randomizedName": str(uuid.uuid5(uuid.NAMESPACE_URL, f"wsi-ips/{image.slide_id}")),
        "imageName": image.path.name,
        "metadata": {"wsi-ips slide": image.slide_id, **image.facts},
    }


def _server(image: QuPathImage) -> dict[str, Any]:
    """What opens the slide; size, levels and scale are left to QuPath, which reads them from the file."""
    provider, arguments = PROVIDERS[image.reader]
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
        "objects": _objects_name(image),
        "width": image.size.width,
        "height": image.size.height,
        "mpp_x": image.mpp.x,
        "mpp_y": image.mpp.y,
    }


def _objects_name(image: QuPathImage) -> str:
    return f"{image.slide_id}.geojson.gz"


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
