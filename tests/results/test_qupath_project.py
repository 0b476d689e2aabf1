"""QuPath projects: the JSON that QuPath reads, and the script, run in a stand-in of the classes of QuPath it calls."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema
import pytest

from wsi_ips.geometry import Scale, Size
from wsi_ips.results.qupath_project import QuPathImage, write_project

STANDIN = Path(__file__).parent / "qupath_standin"
SERVER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["builderType", "providerClassName", "uri", "args"],
    "properties": {
        "builderType": {"const": "uri"},
        "providerClassName": {"pattern": r"^qupath\.lib\.images\.servers\.(openslide|bioformats)\.\w+ServerBuilder$"},
        "uri": {"type": "string", "pattern": "^file:/"},
        "args": {"type": "array", "items": {"type": "string"}},
    },
}
PROJECT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["version", "createTimestamp", "modifyTimestamp", "uri", "lastID", "images"],
    "properties": {
        "version": {"type": "string"},
        "createTimestamp": {"type": "integer", "minimum": 1_600_000_000_000},
        "modifyTimestamp": {"type": "integer"},
        "uri": {"type": "string", "pattern": r"^file:/.*\.qpproj$"},
        "lastID": {"type": "integer"},
        "images": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["serverBuilder", "entryID", "randomizedName", "imageName", "metadata"],
                "properties": {
                    "serverBuilder": SERVER,
                    "entryID": {"type": "integer", "minimum": 1},
                    "randomizedName": {"type": "string"},
                    "imageName": {"type": "string", "minLength": 1},
                    "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                },
            },
        },
    },
}
"""What QuPath's reader of projects takes (DefaultProject, 0.5): names, and metadata of text only."""


def image(folder: Path, slide_id: str, name: str, ids: list[str], reader: str = "openslide") -> QuPathImage:
    """A slide with objects of these ids."""
    objects = folder / f"{slide_id}.geojson.gz"
    features = [{"type": "Feature", "id": text} for text in ids]
    objects.write_bytes(gzip.compress(json.dumps({"type": "FeatureCollection", "features": features}).encode()))
    slide = folder / name
    slide.write_bytes(b"")
    size, mpp = Size(1000, 800), Scale(0.25, 0.26)
    return QuPathImage(slide_id, slide, reader, size, mpp, objects, b"jpeg", {"tumor probability": "0.500"})


@pytest.fixture
def images(tmp_path) -> list[QuPathImage]:
    return [
        image(tmp_path, "a", "Fall 1 µ'%.svs", ["a1", "a2"]),
        image(tmp_path, "b", "b.ome.tif", ["b1"], "tiffslide"),
    ]


def project(folder: Path, images: list[QuPathImage]) -> Path:
    folder.mkdir()
    write_project(folder, images, home=folder, created=datetime(2026, 1, 2, tzinfo=UTC))
    return folder


def test_the_project_is_what_qupath_reads(tmp_path, images):
    folder = project(tmp_path / "p", images)
    stored = json.loads((folder / "project.qpproj").read_text())
    jsonschema.validate(stored, PROJECT)
    assert stored["lastID"] == 2
    assert [entry["entryID"] for entry in stored["images"]] == [1, 2]
    assert stored["images"][1]["serverBuilder"]["args"] == ["--series", "0"]
    for entry, slide in zip(stored["images"], images, strict=True):
        server = json.loads((folder / "data" / str(entry["entryID"]) / "server.json").read_text())
        assert server == entry["serverBuilder"]
        assert Path(unquote(urlsplit(server["uri"]).path)) == slide.path
        assert (folder / "data" / str(entry["entryID"]) / "thumbnail.jpg").read_bytes() == slide.thumbnail
    assert not list(folder.rglob("*.qpdata"))


def test_every_listed_slide_has_its_objects(tmp_path, images):
    folder = project(tmp_path / "p", images)
    for entry, slide in zip(
        json.loads((folder / "wsi-ips" / "slides.json").read_text())["slides"], images, strict=True
    ):
        assert (folder / "wsi-ips" / entry["objects"]).read_bytes() == slide.objects.read_bytes()
        assert (entry["file"], entry["width"], entry["height"]) == (slide.path.name, 1000, 800)


def loaded(folder: Path, qpproj: Path, sizes: dict[str, Any], times: int = 1) -> tuple[dict[str, Any], str]:
    """Run the script of a project on the images of a project; what they hold then, and what was printed."""
    java = shutil.which("java")
    if shutil.which("groovy") is None or java is None:
        pytest.skip("needs groovy and java")
    script = folder / "scripts" / "load_wsi_ips.groovy"
    done = subprocess.run(
        ["groovy", "-cp", STANDIN, STANDIN / "drive.groovy", script, qpproj, json.dumps(sizes), str(times)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAVA_HOME": str(Path(java).resolve().parents[1]), "JAVA_OPTS": "-Dfile.encoding=UTF-8"},
        timeout=120,
        check=False,
    )
    said, mark, held = done.stdout.rpartition("=" * 8)
    assert mark, done.stdout + done.stderr
    return json.loads(held), said


@pytest.mark.slow
def test_the_script_loads_each_slide_once_and_leaves_what_people_drew(tmp_path, images):
    folder = project(tmp_path / "it's here", images)
    sizes = {slide.path.name: [1000, 800] for slide in images}
    held, said = loaded(folder, folder / "project.qpproj", sizes, times=2)
    assert [held[slide.path.name]["features"] for slide in images] == [["a1", "a2"], ["b1"]]
    assert all(one["people"] == 1 and one["type"] == "BRIGHTFIELD_H_E" for one in held.values())
    assert held["b.ome.tif"]["mpp"] == [0.25, 0.26]
    assert "2 of 2 images" in said


@pytest.mark.slow
def test_in_another_project_images_are_found_by_name_and_wrong_ones_left_alone(tmp_path, images):
    other = [
        replace(images[0], path=tmp_path / "elsewhere" / "Fall 1 µ'%.tiff"),  # converted, same name
        image(tmp_path, "c", "c.svs", []),  # no slide of the run
        replace(images[1], path=tmp_path / "b.ome.tif"),  # of another size: a crop
    ]
    folder, mine = project(tmp_path / "p", images), project(tmp_path / "mine", other)
    shutil.rmtree(mine / "wsi-ips")
    stored = json.loads((mine / "project.qpproj").read_text())
    for entry in stored["images"]:
        entry["metadata"] = {}
    (mine / "project.qpproj").write_text(json.dumps(stored))
    sizes = {"Fall 1 µ'%.tiff": [1000, 800], "c.svs": [1000, 800], "b.ome.tif": [500, 400]}
    held, said = loaded(folder, mine / "project.qpproj", sizes)
    assert {name: one["features"] for name, one in held.items()} == {
        "Fall 1 µ'%.tiff": ["a1", "a2"],
        "c.svs": [],
        "b.ome.tif": [],
    }
    assert [one["saved"] for one in held.values()] == [1, 0, 0]
    assert "c.svs: no slide of this name, left alone" in said
    assert "b.ome.tif: the image has 500 x 400 px, the slide 1000 x 800; left alone" in said


@pytest.mark.slow
def test_two_slides_of_one_name_are_told_apart_only_in_the_exported_project(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    images = [image(tmp_path / "x", "x", "1.svs", ["x1"]), image(tmp_path / "y", "y", "1.svs", ["y1"])]
    folder = project(tmp_path / "p", images)
    _, said = loaded(folder, folder / "project.qpproj", {"1.svs": [1000, 800]})
    assert "2 of 2 images" in said
    stored = json.loads((folder / "project.qpproj").read_text())
    stored["images"] = [stored["images"][0] | {"metadata": {}}]
    (folder / "project.qpproj").write_text(json.dumps(stored))
    held, said = loaded(folder, folder / "project.qpproj", {"1.svs": [1000, 800]})
    assert "1.svs: several slides have this name, left alone" in said
    assert held["1.svs"]["features"] == []
