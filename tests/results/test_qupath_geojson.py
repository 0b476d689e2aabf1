"""GeoJSON of a package: by QuPath's rules, and back to what it was made from."""

from __future__ import annotations

import csv
import gzip
import io
import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import shapely
from shapely import affinity

from tests.results.planted import content_of, drawn, maps_of, of_grid, planted_box, tile_scores
from tests.results.scenes import SCENES, scene
from wsi_ips.annotations import read_annotation, read_asap
from wsi_ips.results import qupath_geojson
from wsi_ips.results.handoff_package import Material, PackageContent, write_package

RING = {
    "type": "array",
    "minItems": 4,
    "items": {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "number"}},
}


QUPATH = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "id", "geometry", "properties"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "Feature"},
                    "id": {"pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"},
                    "geometry": {
                        "oneOf": [
                            {
                                "required": ["type", "coordinates"],
                                "properties": {
                                    "type": {"const": "Polygon"},
                                    "coordinates": {"type": "array", "minItems": 1, "items": RING},
                                },
                            },
                            {
                                "required": ["type", "coordinates"],
                                "properties": {
                                    "type": {"const": "MultiPolygon"},
                                    "coordinates": {"type": "array", "items": {"type": "array", "items": RING}},
                                },
                            },
                        ]
                    },
                    "properties": {
                        "type": "object",
                        "required": ["objectType", "classification"],
                        "additionalProperties": False,
                        "properties": {
                            "objectType": {"enum": ["annotation", "detection", "tile", "cell"]},
                            "name": {"type": "string"},
                            "isLocked": {"type": "boolean"},
                            "classification": {
                                "type": "object",
                                "required": ["name", "color"],
                                "properties": {
                                    "name": {"type": "string", "minLength": 1},
                                    "color": {
                                        "type": "array",
                                        "minItems": 3,
                                        "maxItems": 3,
                                        "items": {"type": "integer", "minimum": 0, "maximum": 255},
                                    },
                                },
                            },
                            "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                        },
                    },
                },
            },
        },
    },
}
"""What QuPath 0.5 to 0.8 asks: a colour with each class, UUIDs, type and measurements within the properties."""


def refuse(text: str) -> None:
    raise AssertionError(f"{text} in JSON")


def features_of(path: Path) -> list[dict[str, Any]]:
    document = json.loads(gzip.decompress(path.read_bytes()), parse_constant=refuse)
    jsonschema.validate(document, QUPATH)
    return document["features"]


def test_geojson_follows_qupaths_rules_and_comes_back_through_shapely(tmp_path: Path) -> None:
    s = scene(**SCENES["bounds"])
    maps = maps_of(s, tile_scores(s, planted_box(s)))
    content = PackageContent.of(maps, Material(tissue=shapely.box(*s.bounds[:2], s.bounds.right, s.bounds.bottom)))
    lesions = content.lesions
    (file,) = qupath_geojson.write_best(tmp_path, content)
    features = features_of(file.path)
    assert len({f["id"] for f in features}) == len(features)
    assert {uuid.UUID(f["id"]).version for f in features} == {5}
    areas = {f["properties"]["name"]: f for f in features if f["properties"]["objectType"] == "annotation"}
    assert set(areas) == {"Lesion 1", "Not analysed"}
    assert all(f["properties"]["isLocked"] for f in areas.values())
    region = shapely.geometry.shape(areas["Lesion 1"]["geometry"])
    assert region.is_valid
    assert affinity.translate(region, *maps.bounds_origin).equals(lesions[0].region)
    measured = areas["Lesion 1"]["properties"]["measurements"]
    assert measured["area mm²"] == pytest.approx(lesions[0].area_um2 / 1e6, rel=1e-5)
    assert measured["longest diameter mm"] == pytest.approx(lesions[0].diameter_um / 1e3, rel=1e-5)
    assert areas["Not analysed"]["properties"]["measurements"]["area mm²"] > 0
    shown = [f for f in features if f["properties"]["objectType"] == "tile"]
    assert len(shown) == (maps.score >= 0.5).sum()
    for feature in shown:
        row = feature["properties"]["measurements"]["tile number"]
        corner = maps.x[row] - s.bounds.x, maps.y[row] - s.bounds.y
        assert shapely.geometry.shape(feature["geometry"]).bounds[:2] == corner
        assert feature["properties"]["measurements"]["attention (tile)"] == pytest.approx(
            maps.scores["attention"][row], abs=1e-6
        )


def test_our_own_reader_takes_the_lesions_for_annotated_tumour(tmp_path: Path) -> None:
    s = scene(**SCENES["bounds"])
    maps = maps_of(s, tile_scores(s, planted_box(s)))
    content = content_of(maps)
    path = tmp_path / "a.geojson.gz"
    qupath_geojson.write_geojson(path, content, np.zeros(0, int))
    assert read_annotation(path, bounds_origin=maps.bounds_origin).tumour.equals(content.lesions[0].region)


def test_the_same_scores_make_the_same_bytes_and_another_model_other_ids(tmp_path: Path) -> None:
    maps = of_grid(drawn())
    texts = []
    for number, fingerprint in enumerate(("f00d", "f00d", "beef")):
        made = replace(maps, fingerprint=fingerprint)
        path = tmp_path / f"{number}.gz"
        qupath_geojson.write_geojson(path, content_of(made), made.best_first())
        texts.append(path.read_bytes())
    assert texts[0] == texts[1] != texts[2]
    first, last = (json.loads(gzip.decompress(text))["features"] for text in texts[1:])
    assert not {f["id"] for f in first} & {f["id"] for f in last}


def test_a_negative_slide_has_no_lesion_and_its_highest_tiles_are_called_below(tmp_path: Path) -> None:
    maps = of_grid(np.linspace(0, 0.2, 100, dtype=np.float32).reshape(10, 10), probability=0.01)
    facts = write_package(tmp_path / "out", maps, Material(), formats=("geojson", "asap", "lesions"))
    assert (facts["lesions"], facts["lesion_area_mm2"], facts["longest_diameter_mm"]) == (0, 0, 0)
    features = features_of(tmp_path / "out" / "a.b (1).geojson.gz")
    assert len(features) == qupath_geojson.LEAST_TILES
    assert {f["properties"]["classification"]["name"] for f in features} == {"below 0.5"}
    assert sorted(f["properties"]["measurements"]["tile number"] for f in features) == list(range(88, 100))
    assert read_asap(tmp_path / "out" / "a.b (1)_lesions.xml").tumour.is_empty
    assert len((tmp_path / "out" / "a.b (1)_lesions.csv").read_text().splitlines()) == 1


def test_what_is_too_much_for_qupath_is_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qupath_geojson, "MOST_LESIONS", 2)
    monkeypatch.setattr(qupath_geojson, "MOST_TILES", 20)
    facts = write_package(tmp_path / "out", of_grid(drawn()), Material(), formats=("geojson", "lesions"))
    assert facts["files"][0]["left_out"] == {"lesions": 1, "tiles": 80}
    assert facts["files"][0]["check"]["lesions"] == 2
    table = (tmp_path / "out" / "a.b (1)_lesions.csv").read_text()
    assert [row["lesion"] for row in csv.DictReader(io.StringIO(table))] == ["1", "2", "3"]
    facts = write_package(tmp_path / "out", of_grid(drawn()), Material(), formats=("geojson-all-tiles", "geojson"))
    assert [entry["name"] for entry in facts["files"]] == ["a.b (1)_all_tiles.geojson.gz", "a.b (1).geojson.gz"]
    assert facts["files"][0]["left_out"]["tiles"] == 0
    assert facts["files"][0]["check"]["tiles"] == 100
