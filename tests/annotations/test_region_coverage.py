"""Tumour share of tiles equals shapely's, tile by tile; a region as a mask holds the pixels whose centre is inside."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.annotations import region_mask, tumour_fraction
from wsi_ips.geometry import Size

SIZE = Size(1000, 700)


@given(st.integers(0, 10_000))
def test_equals_the_intersection_of_each_box(seed):
    rng = np.random.default_rng(seed)
    blobs = [shapely.Point(*rng.uniform(0, 1000, 2)).buffer(rng.uniform(5, 200)) for _ in range(4)]
    region = shapely.difference(shapely.union_all(blobs[:3]), blobs[3])
    boxes = np.column_stack([rng.uniform(-100, 1000, (30, 2)), rng.uniform(5, 300, (30, 2))])
    expected = [shapely.intersection(region, shapely.box(x, y, x + w, y + h)).area / (w * h) for x, y, w, h in boxes]
    np.testing.assert_allclose(tumour_fraction(region, boxes), expected, atol=1e-5)


def test_nothing_annotated_is_zero_everywhere():
    assert tumour_fraction(shapely.Polygon(), np.ones((3, 4))).tolist() == [0, 0, 0]
    assert tumour_fraction(shapely.box(0, 0, 9, 9), np.empty((0, 4))).shape == (0,)


def by_points(region: shapely.Geometry, downsample: float) -> np.ndarray:
    """Every pixel asked for itself."""
    rows, columns = (int(np.ceil(side / downsample)) for side in (SIZE.height, SIZE.width))
    y, x = np.mgrid[:rows, :columns] + 0.5
    return shapely.contains_xy(region, x * downsample, y * downsample)


@pytest.mark.parametrize("downsample", [32, 10.3, 1])
def test_holes_islands_and_several_parts(downsample):
    ring = shapely.Point(400, 350).buffer(210) - shapely.Point(390, 340).buffer(120)
    region = shapely.union_all([ring, shapely.Point(395, 345).buffer(60), shapely.box(800, 100, 900, 500)])
    mask = region_mask(region, SIZE, downsample=downsample)
    expected = by_points(region, downsample)
    assert mask.shape == expected.shape
    assert (mask != expected).mean() < 2e-3  # points on a line may fall to either side
    assert mask.sum() * downsample**2 == pytest.approx(region.area, rel=0.08)


def test_what_reaches_beyond_the_slide_is_cut():
    region = shapely.box(-300, -300, 100, 2000)
    mask = region_mask(region, SIZE, downsample=10)
    assert mask[:, :9].all()
    assert not mask[:, 11:].any()
    assert not region_mask(shapely.box(5000, 5000, 6000, 6000), SIZE, downsample=10).any()


def test_nothing_annotated_is_an_empty_mask():
    assert region_mask(shapely.Polygon(), SIZE, downsample=32).shape == (22, 32)
    assert not region_mask(shapely.Polygon(), SIZE, downsample=32).any()
