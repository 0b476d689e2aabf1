"""Lesions: what lies together on the map, and only where tiles are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely

from tests.results.planted import drawn, maps_of, of_grid
from tests.results.scenes import SCENES, scene
from wsi_ips.geometry import Box
from wsi_ips.results.lesions import covered_region, find_lesions


def test_lesions_are_what_lies_together_largest_first() -> None:
    ring, square, island = find_lesions(of_grid(drawn()))  # the cell below the ring touches it at a corner
    assert [lesion.number for lesion in (ring, square, island)] == [1, 2, 3]
    cell_um2 = (64 * 0.5) ** 2
    assert [lesion.area_um2 / cell_um2 for lesion in (ring, square, island)] == pytest.approx([26, 6, 4])
    assert square.diameter_um == pytest.approx(np.hypot(3, 2) * 32)
    assert square.box_px0 == Box(0, 8 * 64, 3 * 64, 2 * 64)
    assert square.centroid_px0 == (96.0, 576.0)
    assert (ring.mean, ring.highest) == pytest.approx((0.9, 0.9))
    assert len(shapely.get_interior_ring(shapely.get_parts(ring.region)[0], 0).coords) > 3  # what it encloses is a hole


def test_a_tile_with_the_threshold_itself_is_positive_and_one_below_is_not() -> None:
    values = np.full((3, 3), 0.1, np.float32)
    values[1, 1] = 0.5
    assert len(find_lesions(of_grid(values))) == 1
    values[1, 1] = np.nextafter(np.float32(0.5), np.float32(0))
    assert find_lesions(of_grid(values)) == []


@pytest.mark.parametrize("name", SCENES)
def test_lesions_claim_nothing_that_no_tile_covers(name: str) -> None:
    s = scene(**SCENES[name])
    keep = np.random.default_rng(3).random(len(s.corners)) < 0.5
    s = replace(s, corners=s.corners[keep])
    maps = maps_of(s, np.ones(len(s.corners)))
    x, y = s.corners.T
    boxes = shapely.union_all(shapely.box(x, y, x + s.plan.footprint_px0.x, y + s.plan.footprint_px0.y))
    found = shapely.union_all([lesion.region for lesion in find_lesions(maps)])
    rim = shapely.union_all(boxes).boundary.length  # corners of tiles are rounded to whole pixels
    assert shapely.symmetric_difference(found, boxes).area <= 1.01 * rim
    assert shapely.symmetric_difference(covered_region(maps.raster), boxes).area <= 1.01 * rim
