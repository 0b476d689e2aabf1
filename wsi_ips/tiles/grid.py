"""The tile grid: pure coordinates."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wsi_ips.geometry import Box, ReadPlan, Scale


def tile_grid(bounds: Box, plan: ReadPlan, *, stride_px: int) -> NDArray[np.int32]:
    """Top-left corners of all tiles that lie wholly inside a box.

    Column i starts at ``round(i * stride)`` with the real stride in level-0 pixels, so positions never drift:
    none is more than half a level-0 pixel off, however far from the origin.

    Parameters
    ----------
    bounds
        Scanned part of the slide, level-0 pixels.
    plan
        How a patch is read.
    stride_px
        Step between tiles in patch pixels.

    Returns
    -------
    numpy.ndarray
        int32, shape (N, 2): x, y in level-0 pixels of the full slide, ordered by y, then x. Shape (0, 2)
        where no tile fits.
    """
    stride = stride_px0(plan, stride_px=stride_px)
    xs = bounds.x + _starts(bounds.width, plan.footprint_px0.x, stride.x)
    ys = bounds.y + _starts(bounds.height, plan.footprint_px0.y, stride.y)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1)  # (rows, columns, 2)
    return grid.reshape(-1, 2).astype(np.int32)


def stride_px0(plan: ReadPlan, *, stride_px: int) -> Scale:
    """Step between tiles in level-0 pixels, as real numbers."""
    return Scale(stride_px * plan.px0_per_patch_px.x, stride_px * plan.px0_per_patch_px.y)


def _starts(length: int, footprint: float, stride: float) -> NDArray[np.int64]:
    count = max(0, math.floor((length - footprint) / stride) + 2)
    starts = np.rint(np.arange(count) * stride).astype(np.int64)
    return np.asarray(starts[starts + footprint <= length + 1e-6])
