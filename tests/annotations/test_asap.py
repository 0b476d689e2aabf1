"""ASAP XML: groups, holes, broken rings, hostile files."""

from __future__ import annotations

import time
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.annotations import read_asap, write_asap
from wsi_ips.errors import AnnotationError
from wsi_ips.outline_repair import repaired

COORDINATE = st.one_of(st.floats(), st.integers(-5, 200), st.sampled_from(["x", "", "1e400", "NaN"]))

SQUARE = [(0, 0), (100, 0), (100, 60), (0, 60)]


def xml(*areas: tuple[str, str, list[tuple[float, float]]]) -> str:
    parts = []
    for kind, group, points in areas:
        ring = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(points))
        parts.append(
            f'<Annotation Name="a" Type="{kind}" PartOfGroup="{group}"><Coordinates>{ring}</Coordinates></Annotation>'
        )
    return f"<ASAP_Annotations><Annotations>{''.join(parts)}</Annotations></ASAP_Annotations>"


def read(tmp_path, text: str):
    path = tmp_path / "a.xml"
    path.write_text(text, encoding="utf-8")
    return read_asap(path)


def test_what_is_written_comes_back(tmp_path):
    ring = np.array([(10.25, 20), (310, 25), (200, 280)])
    write_asap(tmp_path / "a.xml", [ring])
    region = read_asap(tmp_path / "a.xml").tumour
    np.testing.assert_allclose(sorted(region.exterior.coords[:-1]), sorted(map(tuple, ring)))


def test_holes_are_cut_out_and_unions_counted_once(tmp_path):
    inner = [(20, 20), (40, 20), (40, 40), (20, 40)]
    shifted = [(x + 50, y) for x, y in SQUARE]
    text = xml(("Polygon", "_0", SQUARE), ("Spline", " tumor ", shifted), ("Polygon", "Exclusion", inner))
    assert read(tmp_path, text).tumour.area == 150 * 60 - 400


def test_camelyon17_groups(tmp_path):
    inner = [(20, 20), (40, 20), (40, 40), (20, 40)]
    text = xml(("Polygon", "metastases", SQUARE), ("Polygon", "normal", inner))
    assert read(tmp_path, text).tumour.area == 6000 - 400


def test_a_self_intersection_is_mended(tmp_path):
    bow_tie = [(0, 0), (100, 100), (100, 0), (0, 100)]
    assert read(tmp_path, xml(("Polygon", "Tumor", bow_tie))).tumour.area == 5000


def test_lines_and_dots_are_left_out(tmp_path):
    text = xml(("Polygon", "Tumor", SQUARE), ("Polygon", "Tumor", SQUARE[:2]), ("Dot", "Tumor", SQUARE[:1]))
    assert read(tmp_path, text).tumour.area == 6000


def test_lesions_are_the_parts_largest_first(tmp_path):
    far = [(1000, 0), (1300, 0), (1300, 300), (1000, 300)]
    lesions = read(tmp_path, xml(("Polygon", "Tumor", SQUARE), ("Polygon", "Tumor", far))).lesions()
    assert [lesion.area for lesion in lesions] == [90_000, 6000]


def test_other_tissue_is_listed_and_leaves_nothing_unknown(tmp_path):
    found = read(tmp_path, xml(("Polygon", "Stroma", SQUARE), ("Dot", "Tumor", SQUARE[:1])))
    assert found.tumour.is_empty
    assert found.unknown.is_empty
    assert found.unused == {"stroma": 1, "tumor without area": 1}


def test_nested_groups_count_as_the_group_above_and_holes_stay_holes(tmp_path):
    inner, far = [(20, 20), (40, 20), (40, 40), (20, 40)], [(200, 0), (300, 0), (300, 60)]
    text = xml(("Polygon", "Part 2", SQUARE), ("Polygon", "Spared", inner), ("Polygon", "None", far))
    groups = (
        '<AnnotationGroups><Group Name="Part 2" PartOfGroup="Tumor"/><Group Name="Tumor" PartOfGroup="None"/>'
        '<Group Name="Spared" PartOfGroup="Exclusion"/><Group Name="Exclusion" PartOfGroup="Tumor"/>'
        '<Group Name="a" PartOfGroup="b"/><Group Name="b" PartOfGroup="a"/></AnnotationGroups></ASAP_Annotations>'
    )
    found = read(tmp_path, text.replace("</ASAP_Annotations>", groups))
    assert found.tumour.area == 6000 - 400
    assert found.unused == {"none": 1}
    assert found.unknown.area == 3000


def test_points_are_joined_in_their_order(tmp_path):
    ring = "".join(f'<Coordinate Order="{n}" X="{SQUARE[n][0]}" Y="{SQUARE[n][1]}"/>' for n in (0, 2, 1, 3))
    text = xml(("Polygon", "Tumor", [])).replace("<Coordinates>", f"<Coordinates>{ring}")
    assert read(tmp_path, text).tumour.area == 6000


@pytest.mark.parametrize("value", ["nan", "inf", "x", "1e300", "9" * 6000])
def test_coordinates_that_are_no_places_are_refused(tmp_path, value):
    with pytest.raises(AnnotationError, match=r"a\.xml: a: a coordinate is not a"):
        read(tmp_path, xml(("Polygon", "Tumor", [*SQUARE, (value, 3)])))


def test_a_mask_given_as_annotation_is_called_a_picture(real_data):
    with pytest.raises(AnnotationError, match=r"_mask\.tif: a picture.*make outlines"):
        read_asap(real_data / "slides" / "demo_tumor_slide_mask.tif")


def test_a_scribble_is_what_it_encloses_and_slips_of_the_pen_are_no_lesions(tmp_path):
    turn = np.linspace(0, 4 * np.pi, 400)
    twice = np.c_[np.cos(turn), np.sin(turn)] * (300 + turn[:, None] * 9) + 600
    region = read(tmp_path, xml(("Polygon", "Tumor", twice.tolist()))).tumour
    assert region.contains(shapely.Point(600, 600))  # gone around twice, and no hole
    slip = [(0, 0), (1000, 0), (1000, 1000), (-1, 1000), (1, 998), (1, 999)]
    assert len(read(tmp_path, xml(("Polygon", "Tumor", slip))).lesions()) == 1


def test_scribbles_take_bounded_time(tmp_path):
    rng, started = np.random.default_rng(0), time.monotonic()
    crossed = rng.uniform(0, 9000, (120, 2))  # crosses itself over 2 000 times
    assert read(tmp_path, xml(("Polygon", "Tumor", crossed.tolist()))).tumour.area > 0
    with pytest.raises(AnnotationError, match="crosses itself over"):
        read(tmp_path, xml(("Polygon", "Tumor", rng.uniform(0, 9000, (5000, 2)).tolist())))
    assert time.monotonic() - started < 30


def test_an_outline_of_many_points_is_thinned_and_keeps_its_area():
    turn = np.linspace(0, 2 * np.pi, 1_000_000)
    ring = np.c_[np.cos(turn), np.sin(turn)] * 50_000 + 60_000 + np.random.default_rng(0).normal(0, 0.5, (len(turn), 2))
    started = time.monotonic()
    found = repaired(shapely.Polygon(ring), "annotation a.xml")
    assert found.area == pytest.approx(np.pi * 50_000**2, rel=1e-3)
    assert shapely.get_num_coordinates(found) <= 50_000
    with pytest.raises(AnnotationError, match=r"a\.xml: an outline of 200001 points"):
        repaired(shapely.Polygon(np.random.default_rng(0).uniform(0, 9000, (200_000, 2))), "annotation a.xml")
    assert time.monotonic() - started < 60


def test_the_pieces_of_a_real_outline_that_crosses_itself_are_no_lesions(real_data):
    found = read_asap(real_data / "annotations" / "tumor_004_from_ncrf.xml")
    assert len(found.lesions()) <= 7  # outlines in the file; 14 lesions with each piece counted


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(COORDINATE, COORDINATE), max_size=8), st.text(max_size=8))
def test_any_coordinates_and_groups_give_valid_regions_or_a_named_error(tmp_path_factory, points, group):
    ring = "".join(f"<Coordinate X={quoteattr(str(x))} Y={quoteattr(str(y))}/>" for x, y in points)
    name = "".join(c for c in group if c.isprintable())
    path = tmp_path_factory.mktemp("fuzz") / "a.xml"
    text = xml(("Polygon", "GROUP", [])).replace('"GROUP"', quoteattr(name))
    path.write_text(text.replace("<Coordinates>", f"<Coordinates>{ring}"), encoding="utf-8")
    try:
        region, said = read_asap(path).tumour, "a.xml"
    except AnnotationError as error:
        region, said = shapely.Polygon(), str(error)
    assert "a.xml" in said
    assert region.is_valid


def test_unknown_groups_are_named(tmp_path):
    with pytest.raises(AnnotationError, match=r"not used: follicle \(1\) - .*rename"):
        read(tmp_path, xml(("Polygon", "Follicle", SQUARE), ("Polygon", "Exclusion", [(9, 9), (10, 9), (10, 10)])))


@pytest.mark.parametrize(
    "text",
    ["", "<ASAP_Annotations>", "<GeoJSON/>", '<!DOCTYPE a [<!ENTITY b "c">]><ASAP_Annotations>&b;</ASAP_Annotations>'],
)
def test_what_is_no_safe_asap_file_is_refused_by_name(tmp_path, text):
    with pytest.raises(AnnotationError, match=r"a\.xml"):
        read(tmp_path, text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AnnotationError, match=r"none\.xml"):
        read_asap(tmp_path / "none.xml")


@pytest.mark.parametrize(
    ("name", "lesions"),
    [("tumor_004_from_ncrf.xml", 1), ("tumor_073_from_ncrf.xml", 1), ("patient_004_node_4.xml", 1)],
)
def test_real_camelyon_files(real_data, name, lesions):
    found = read_asap(real_data / "annotations" / name).lesions()
    assert len(found) >= lesions
    assert all(lesion.is_valid for lesion in found)
