"""ASAP XML: groups, holes, broken rings, hostile files."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ips.annotations import read_asap, write_asap
from wsi_ips.errors import AnnotationError

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


def test_unknown_groups_are_named(tmp_path):
    with pytest.raises(AnnotationError, match=r"groups stroma.*rename"):
        read(tmp_path, xml(("Polygon", "Stroma", SQUARE)))


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
