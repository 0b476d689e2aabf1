"""GeoJSON as QuPath writes it."""

from __future__ import annotations

import gzip
import json
import uuid

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.annotations import geojson_of, read_annotation, read_geojson, read_tissue
from wsi_ips.errors import AnnotationError
from wsi_ips.geometry import Point

ORIGIN = Point(0, 0)
SQUARE = [[[0, 0], [100, 0], [100, 80], [0, 80], [0, 0]]]
HOLE = [[[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]]]

KEYS = ("type", "coordinates", "geometry", "classification", "names", "name", "objectType")
NUMBERS = st.integers(-5, 50) | st.floats()


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
        (json.dumps([feature(SQUARE, "Follicle")]), r"not used: follicle \(1\) - some may be tumour"),
        (json.dumps([feature(SQUARE)]), r"not used: none \(1\)"),
        (json.dumps([feature([[[0, 0], [float("nan"), 1], [2, 0], [0, 0]]], "Tumor")]), "feature 1: .* not a place"),
        (json.dumps([feature([[["1" * 400, 0], [1, 1], [2, 0]]], "Tumor")]), "feature 1"),
        ("[" * 100_000, "not JSON"),
        ("[" + "1" * 6000 + "]", "not JSON"),
        (json.dumps([feature([[["x", 0], [1, 1], [2, 0]]], "Tumor")]), "feature 1 is not a polygon"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path, text, message):
    path = tmp_path / "a.geojson"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AnnotationError, match=message):
        read_annotation(path, bounds_origin=ORIGIN)


def test_derived_classes_mean_their_first_known_name_in_both_forms(tmp_path):
    shifted = [[[x + 500, y] for x, y in SQUARE[0]]]
    for classification in ({"names": ["Tumor", "Positive"]}, {"name": "Tumor: Positive", "colorRGB": -1}, "Tumor: 2+"):
        derived = feature(shifted)
        derived["properties"] = {"objectType": "annotation", "classification": classification}
        found = read_annotation(write(tmp_path / "a.geojson", feature(SQUARE, "Tumor"), derived), bounds_origin=ORIGIN)
        assert len(found.lesions()) == 2
        assert not found.unused
    path = write(tmp_path / "b.geojson", feature(SQUARE, "Tumor"), feature(shifted, "Stroma: Tumor"))
    assert read_annotation(path, bounds_origin=ORIGIN).unused == {"stroma: tumor": 1}


@pytest.mark.parametrize(
    "change",
    [{"properties": {"objectType": "cell"}}, {"properties": {"objectType": "detection"}}, {"id": "PathCellObject"}],
)
def test_cells_are_no_lesions_and_features_without_geometry_refuse_nothing(tmp_path, change):
    cell = feature([[[x + 500, y] for x, y in SQUARE[0]]], "Tumor")
    cell["properties"] |= change.get("properties", {})
    cell |= {key: value for key, value in change.items() if key == "id"}
    bare = {"type": "Feature", "geometry": None, "properties": {}}
    found = read_annotation(write(tmp_path / "a.geojson", feature(SQUARE, "Tumor"), cell, bare), bounds_origin=ORIGIN)
    assert found.tumour.area == 8000
    assert sum(found.unused.values()) == 2
    assert found.unknown.is_empty


def test_a_key_says_what_other_classes_are(tmp_path):
    path = write(tmp_path / "a.geojson", feature(SQUARE), feature(HOLE, "Follicle: A"))
    classes = {"none": "tumor", "Follicle": "exclude"}
    assert read_annotation(path, bounds_origin=ORIGIN, classes=classes).tumour.area == 8000 - 100
    known = read_annotation(path, bounds_origin=ORIGIN, classes={"none": "tumor", "follicle": None})
    assert known.unknown.is_empty
    assert known.unused == {"tissue": 1}


def test_outlines_that_may_be_tumour_are_unknown_outside_of_what_is_known(tmp_path):
    far = [[[x + 500, y] for x, y in SQUARE[0]]]
    path = write(tmp_path / "a.geojson", feature(SQUARE, "Tumor"), feature(HOLE, "Odd"), feature(far, "DCIS"))
    found = read_annotation(path, bounds_origin=ORIGIN)
    assert found.tumour.area == found.unknown.area == 8000
    assert "dcis (1), odd (1) - some may be tumour" in found.remark()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("Polygon"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(geometry=JSON, properties=JSON, ring=st.lists(st.tuples(NUMBERS, NUMBERS), max_size=7))
def test_any_json_gives_valid_regions_or_a_named_error(tmp_path_factory, geometry, properties, ring):
    folder = tmp_path_factory.mktemp("fuzz")
    for number, shape in enumerate((geometry, {"type": "Polygon", "coordinates": [[*ring, *ring[:1]]]})):
        path = write(folder / f"{number}.geojson", {"type": "Feature", "geometry": shape, "properties": properties})
        try:
            found, said = read_geojson(path, bounds_origin=ORIGIN), path.name
        except AnnotationError as error:
            found, said = [], str(error)
        assert path.name in said
        assert all(area.region.is_valid for area in found)


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
