"""Masks as polygons and back: same place, same holes, same tiles."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.annotations import geojson_of, read_tissue
from wsi_ips.geometry import Box, Point, Scale, Size
from wsi_ips.tissue.mask import TissueMask, covered, mask_of, outline_of


def ring() -> TissueMask:
    """A piece with a hole, in which an island lies; not square, other scale on each axis."""
    mask = np.zeros((60, 90), bool)
    mask[10:50, 5:70] = True
    mask[20:40, 20:55] = False
    mask[27:33, 30:40] = True
    return TissueMask(mask, Scale(16.0, 20.0), 0.1, "drawn")


def test_holes_and_islands_come_back(tmp_path):
    tissue, size = ring(), Size(90 * 16, 60 * 20)
    path = tmp_path / "mask.geojson"
    path.write_bytes(geojson_of([("Tissue", outline_of(tissue))], bounds_origin=Point(100, 40), seed="s"))
    region = read_tissue(path, bounds_origin=Point(100, 40))
    again = mask_of(region, px0_size=size, mask_size=Size(90, 60), source=path.name)
    assert (again.mask & tissue.mask).sum() / (again.mask | tissue.mask).sum() > 0.98
    assert not again.mask[30, 25]
    assert again.mask[30, 35]
    assert again.method == "drawn: mask.geojson"


def test_bounds_are_subtracted_on_writing_and_added_on_reading(tmp_path):
    path = tmp_path / "mask.geojson"
    box = shapely.box(500, 300, 900, 700)
    path.write_bytes(geojson_of([("Tissue", box)], bounds_origin=Point(400, 250), seed="s"))
    assert read_tissue(path, bounds_origin=Point(0, 0)).bounds == (100, 50, 500, 450)
    assert read_tissue(path, bounds_origin=Point(400, 250)).bounds == (500, 300, 900, 700)


def test_nothing_is_an_empty_region():
    empty = TissueMask(np.zeros((5, 7), bool), Scale(16, 16), 0.1, "drawn")
    assert outline_of(empty).is_empty


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_outlines_of_noise_keep_its_area(seed):
    mask = np.random.default_rng(seed).random((20, 31)) < 0.6
    tissue = TissueMask(mask.repeat(4, 0).repeat(4, 1), Scale(8, 8), 0.1, "drawn")
    area = outline_of(tissue).area / 64
    assert area == pytest.approx(tissue.mask.sum(), rel=0.08)


@settings(max_examples=30, deadline=None)
@given(st.floats(-50, 400), st.floats(-50, 300), st.floats(5, 300), st.floats(5, 300))
def test_covered_shares_add_up_to_the_area(x, y, width, height):
    box, scale = shapely.box(x, y, x + width, y + height), Scale(10.0, 20.0)
    share = covered(box, Box(-10, -10, 100, 60), scale)
    assert share.sum() * 200 == pytest.approx(box.area, abs=6 * width + 3 * height + 60)
