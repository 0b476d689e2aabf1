"""The grid: literal coordinates, and no drift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wsi_ips.geometry import Box, Pyramid, Scale, Size, plan_read
from wsi_ips.tiles.index import tile_grid


def plan(mpp=(0.5, 0.5), target=0.5, patch=100, size=(100_000, 90_000)):
    return plan_read(Pyramid((Size(*size),), Scale(*mpp)), target_mpp=target, patch_size=Size(patch, patch))


@pytest.mark.parametrize(
    ("bounds", "stride", "expected"),
    [
        (Box(0, 0, 250, 130), 100, [(0, 0), (100, 0)]),
        (Box(0, 0, 200, 200), 100, [(0, 0), (100, 0), (0, 100), (100, 100)]),
        (Box(7, 11, 160, 100), 50, [(7, 11), (57, 11)]),
        (Box(0, 0, 350, 100), 150, [(0, 0), (150, 0)]),
        (Box(0, 0, 99, 500), 100, []),
    ],
)
def test_literal_grids(bounds, stride, expected):
    assert [tuple(p) for p in tile_grid(bounds, plan(), stride_px=stride).tolist()] == expected


@given(
    st.floats(0.2, 0.6),
    st.floats(0.2, 0.6),
    st.floats(0.6, 3.0),
    st.integers(32, 512),
    st.integers(16, 700),
    st.integers(0, 5_000),
    st.integers(0, 5_000),
)
def test_tiles_lie_inside_and_never_drift(mpp_x, mpp_y, target, patch, stride, left, top):
    read = plan((mpp_x, mpp_y), target, patch, (200_000, 150_000))
    bounds = Box(left, top, 100_000, 3_000)
    grid = tile_grid(bounds, read, stride_px=stride)
    assume(len(grid))
    x, y = grid.T
    assert x.min() == left
    assert y.min() == top
    assert (x + read.footprint_px0.x <= bounds.right + 1e-6).all()
    assert (y + read.footprint_px0.y <= bounds.bottom + 1e-6).all()
    columns = np.unique(x)
    ideal = left + np.arange(len(columns)) * stride * read.px0_per_patch_px.x
    assert np.abs(columns - ideal).max() <= 0.5 + 1e-6
    assert (np.lexsort((x, y)) == np.arange(len(grid))).all()


def test_no_column_is_missing_at_the_far_edge():
    read = plan((0.3, 0.3), 0.5, 64, (100_000, 1_000))
    columns = np.unique(tile_grid(Box(0, 0, 100_000, 1_000), read, stride_px=64)[:, 0])
    assert 100_000 - (columns[-1] + read.footprint_px0.x) < 64 * read.px0_per_patch_px.x
