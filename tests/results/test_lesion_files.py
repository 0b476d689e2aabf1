"""Outlines for ASAP and the table of lesions."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
import shapely

from tests.results.planted import drawn, of_grid
from wsi_ips.annotations import read_asap
from wsi_ips.results import lesion_files
from wsi_ips.results.lesion_files import joined, lesion_table
from wsi_ips.results.lesions import find_lesions


def test_asap_leaves_out_holes_and_keeps_the_lesion_within(tmp_path: Path) -> None:
    lesions = find_lesions(of_grid(drawn()))
    lesion_files.write_outlines(tmp_path / "a.xml", lesions)
    wanted = shapely.union_all([lesion.region for lesion in lesions])
    assert read_asap(tmp_path / "a.xml").tumour.equals(wanted)
    text = (tmp_path / "a.xml").read_text()
    assert text.count('PartOfGroup="Exclusion"') > 1
    assert read_asap(tmp_path / "a.xml").tumour.contains(shapely.Point(4 * 64, 4 * 64))  # the island
    assert not read_asap(tmp_path / "a.xml").tumour.contains(shapely.Point(6.5 * 64, 4 * 64))


def test_lesions_of_several_slides_make_one_table() -> None:
    one, none = of_grid(drawn()), of_grid(drawn() * 0)
    tables = [lesion_table(maps, find_lesions(maps)) for maps in (one, none, replace(one, slide_id="other"))]
    rows = list(csv.DictReader(io.StringIO(joined(tables))))
    assert [(row["slide_id"], row["lesion"]) for row in rows] == [
        *[("a.b (1)", str(n)) for n in (1, 2, 3)],
        *[("other", str(n)) for n in (1, 2, 3)],
    ]
    square = rows[1]
    assert float(square["area_mm2"]) == pytest.approx(6 * 0.032**2, rel=1e-5)
    assert (square["x_px0"], square["y_px0"], square["width_px0"], square["height_px0"]) == ("0", "512", "192", "128")
