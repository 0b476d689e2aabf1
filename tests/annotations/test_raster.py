"""A region as a mask: what lies in the middle of a pixel."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from wsi_ips.annotations.raster import region_mask
from wsi_ips.geometry import Size

SIZE = Size(1000, 700)


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
