"""Tissue share of boxes: exact, by integral image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.geometry import Scale
from wsi_ips.tissue.mask import TissueMask


def brute_force(mask: np.ndarray, x: float, y: float, width: float, height: float) -> float:
    """Overlap of a box with each mask pixel, one by one."""
    total = 0.0
    for row, column in np.argwhere(mask):
        across = min(x + width, column + 1) - max(x, column)
        down = min(y + height, row + 1) - max(y, row)
        total += max(0.0, across) * max(0.0, down)
    return total / (width * height)


@given(
    st.integers(0, 1000),
    st.floats(-3, 12),
    st.floats(-3, 9),
    st.floats(0.05, 8),
    st.floats(0.05, 8),
)
def test_equals_the_overlap_with_every_pixel(seed, x, y, width, height):
    mask = np.random.default_rng(seed).random((7, 11)) < 0.5
    scale = Scale(31.7, 29.3)
    tissue = TissueMask(mask, scale, 0.1, "drawn")
    box = np.array([[x * scale.x, y * scale.y, width * scale.x, height * scale.y]])
    assert tissue.fraction(box)[0] == pytest.approx(brute_force(mask, x, y, width, height), abs=1e-5)


def test_area_uses_both_axes():
    mask = np.zeros((4, 5), bool)
    mask[:2, :3] = True
    tissue = TissueMask(mask, Scale(10, 20), 0.1, "drawn")
    assert tissue.area_um2(Scale(0.5, 0.25)) == pytest.approx(6 * 5 * 5)
