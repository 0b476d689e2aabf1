"""GeoJSON as QuPath writes it."""

from __future__ import annotations

import gzip
import json
import uuid

import pytest
import shapely

from wsi_ips.annotations import geojson_of, read_annotation, read_geojson, read_tissue
from wsi_ips.errors import AnnotationError
from wsi_ips.geometry import Point

ORIGIN = Point(0, 0)
SQUARE = [[[0, 0], [100, 0], [100, 80], [0, 80], [0, 0]]]
HOLE = [[[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]]]


def feature(coordinates, name=None, kind="Polygon"):
    properties = {} if name is None else {"classification": {"name": name, "color": [200, 0, 0]}}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def write(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}), encoding="utf-8")
    return path


def test_tumour_is_the_union_minus_what_is_excluded(tmp_path):
    path = write(tmp_path / "a.geojson", feature(SQUARE, "Tumor"), feature(SQUARE, " tumour"), feature(HOLE, "Exclude"))
    regions = read_annotation(path, bounds_origin=Point(1000, 500))
    assert regions.tumour.area == 100 * 80 - 100
    assert regions.tumour.bounds == (1000, 500, 1100, 580)


def test_self_intersections_are_made_valid_and_points_left_out(tmp_path):
    bow = [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]
    path = write(tmp_path / "a.json", feature(bow, "Tumor"), feature([5, 5], "Tumor", "Point"))
    region = read_annotation(path, bounds_origin=ORIGIN).tumour
    assert region.is_valid
    assert region.area == pytest.approx(50)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"a": 1}', "not GeoJSON"),
        (json.dumps([feature(SQUARE, "Stroma")]), "stroma.*none of them tumour"),
        (json.dumps([feature([[["x", 0], [1, 1], [2, 0]]], "Tumor")]), "feature 1 is not a polygon"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path, text, message):
    path = tmp_path / "a.geojson"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AnnotationError, match=message):
        read_annotation(path, bounds_origin=ORIGIN)


def test_tissue_without_a_class_counts_and_an_empty_file_does_not(tmp_path):
    assert read_tissue(write(tmp_path / "a.geojson", feature(SQUARE)), bounds_origin=ORIGIN).area == 8000
    with pytest.raises(AnnotationError, match="no area"):
        read_tissue(write(tmp_path / "b.geojson"), bounds_origin=ORIGIN)


def test_what_is_written_is_what_qupath_asks_for(tmp_path):
    region = shapely.union_all([shapely.box(0, 0, 10, 10), shapely.box(50, 0, 60, 10)])
    data = geojson_of([("Tissue", region)], bounds_origin=ORIGIN, seed="slide")
    document = json.loads(data)
    assert data == geojson_of([("Tissue", region)], bounds_origin=ORIGIN, seed="slide")
    assert len(document["features"]) == 2
    for entry in document["features"]:
        uuid.UUID(entry["id"])
        assert entry["properties"]["objectType"] == "annotation"
        assert set(entry["properties"]["classification"]) == {"name", "color"}
    packed = tmp_path / "a.geojson.gz"
    packed.write_bytes(gzip.compress(data))
    assert sum(area.region.area for area in read_geojson(packed, bounds_origin=ORIGIN)) == 200


def test_real_files_of_qupath_and_histoqc_are_read(real_data):
    folder = real_data / "annotations"
    assert read_geojson(folder / "dlup_qupath05.geojson", bounds_origin=ORIGIN)
    holed = read_geojson(folder / "histoqc_holed.geojson", bounds_origin=ORIGIN)
    assert any(len(part.interiors) for area in holed for part in shapely.get_parts(area.region))
