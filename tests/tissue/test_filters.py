"""Filters by shifted copies equal those of scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from wsi_ips.tissue.filters import box_mean, box_share, closed, dilated, local_minimum, without_small

RNG = np.random.default_rng(4)
VALUES = RNG.integers(0, 256, (37, 53), np.uint8)
MASK = RNG.random((37, 53)) < 0.2


@pytest.mark.parametrize("side", [1, 3, 5, 15])
def test_mean(side):
    expected = ndimage.uniform_filter(VALUES.astype(float), side, mode="nearest")
    np.testing.assert_allclose(box_mean(VALUES, side), expected, atol=0.51)


@pytest.mark.parametrize("radius", [0, 1, 4])
def test_dilation_closing_and_minimum(radius):
    side = 2 * radius + 1
    square = np.ones((side, side), bool)
    assert (dilated(MASK, radius) == ndimage.binary_dilation(MASK, square)).all()
    wide = np.pad(MASK, radius)
    expected = ndimage.binary_closing(np.pad(wide, radius), square)[2 * radius or None : -2 * radius or None]
    expected = expected[:, 2 * radius or None : -2 * radius or None] if radius else MASK
    assert (closed(MASK, radius) == expected).all()
    assert (local_minimum(VALUES, radius) == ndimage.minimum_filter(VALUES, side, mode="nearest")).all()


def test_share_is_that_of_the_square_to_an_eighth_of_its_side():
    mask = np.zeros((200, 300), bool)
    mask[:, 100:] = True
    share = box_share(mask, 41)
    assert share[100, 60] == 0
    assert share[100, 160] == 1
    assert share[100, 100] == pytest.approx(0.5, abs=0.13)


def test_pieces_that_touch_by_a_corner_are_one():
    mask = np.zeros((8, 8), bool)
    mask[1:3, 1:3] = mask[3:5, 3:5] = True
    mask[7, 0] = True
    assert without_small(mask, 8).sum() == 8
