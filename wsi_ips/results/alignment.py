"""Self-test of a heatmap: do its pixels show the tissue that the tiles were read from? Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.errors import EvaluationError
from wsi_ips.slides import RGB

LEAST_PX = 3
"""A tile must be this many picture pixels wide and high to be compared."""
ALIGNMENT_TILES, LEAST_ALIGNMENT = 16, 0.7
"""Tiles to compare, and the least correlation of a map that lies on its tissue."""


def page_position(facts: Mapping[str, Any], x_px0: float, y_px0: float) -> tuple[float, float]:
    """Where a level-0 position lies in a picture: column and row, real, measured from the page's corner.

    Parameters
    ----------
    facts
        Sidecar of the picture.
    x_px0, y_px0
        Level-0 position.
    """
    affine = facts["to_level0"]
    return (x_px0 - affine["c"]) / affine["a"], (y_px0 - affine["f"]) / affine["e"]


def alignment_correlation(
    picture: RGB,
    facts: Mapping[str, Any],
    patches: NDArray[np.uint8],
    x: NDArray[np.integer],
    y: NDArray[np.integer],
) -> float:
    """Correlation of re-read tiles with what a picture shows at their place.

    Every patch is averaged down to the picture's pixels and compared in grey with the pixels that the
    sidecar says it covers; the mean of each tile is taken off first, so colour over a tile changes
    nothing and only texture counts. 1 is the same texture, about 0 another place.

    Parameters
    ----------
    picture
        The PNG as it was written, uint8, shape (page height, page width, 3).
    facts
        Its sidecar.
    patches
        Pixels of some tiles, read from the slide again, uint8, shape (k, h, w, 3).
    x, y
        Their top-left corners, level-0 pixels, shape (k,).

    Returns
    -------
    float
        -1 to 1.

    Raises
    ------
    EvaluationError
        Nothing to compare: the tiles are smaller than a few picture pixels, outside the map, or without
        texture.
    """
    pairs = [_pair(picture, facts, *tile) for tile in zip(patches, x.tolist(), y.tolist(), strict=True)]
    shown, read = (np.concatenate([p[side] for p in pairs if p] or [np.zeros(0)]) for side in (0, 1))
    spread = math.sqrt(float(shown @ shown) * float(read @ read))
    if spread == 0:
        raise EvaluationError(
            f"slide {facts['slide_id']}: alignment cannot be tested, {len(patches)} tiles show no texture in the "
            "picture; draw it at a finer `heatmap.mpp`"
        )
    return float(shown @ read) / spread


def _pair(
    picture: RGB, facts: Mapping[str, Any], patch: NDArray[np.uint8], x: int, y: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Grey values of one tile without their mean: in the picture, and in the patch at the picture's pixels."""
    left, top = page_position(facts, x, y)
    right, bottom = page_position(facts, x + facts["tile_px0"][0], y + facts["tile_px0"][1])
    box_x, box_y, box_width, box_height = facts["map_box_px"]
    first, last = max(box_x, math.ceil(left)), min(box_x + box_width, math.floor(right))
    upper, lower = max(box_y, math.ceil(top)), min(box_y + box_height, math.floor(bottom))
    if last - first < LEAST_PX or lower - upper < LEAST_PX:
        return None
    height, width = patch.shape[:2]
    per_x, per_y = width / (right - left), height / (bottom - top)  # patch px per page px
    part = ((first - left) * per_x, (upper - top) * per_y, (last - left) * per_x, (lower - top) * per_y)
    grey = Image.fromarray(patch).convert("L").convert("F")
    read = np.asarray(grey.resize((last - first, lower - upper), Image.Resampling.BOX, box=part), np.float64)
    shown = np.asarray(Image.fromarray(picture[upper:lower, first:last]).convert("L"), np.float64)
    return (shown - shown.mean()).ravel(), (read - read.mean()).ravel()
