"""Quality flags of tiles, one bit each: pen, blur, fold, bubble. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.geometry import Scale
from wsi_ips.slides import Overview
from wsi_ips.tissue.artifacts import find_folds
from wsi_ips.tissue.filters import Bools
from wsi_ips.tissue.mask import AreaSums, TissueMask

Flag = Literal["pen", "blur", "fold", "bubble"]
PEN, BLUR, FOLD, BUBBLE = 1, 2, 4, 8
# Bits of column ``flags`` of the tile index; further bits are 0
BITS: dict[Flag, int] = {"pen": PEN, "blur": BLUR, "fold": FOLD, "bubble": BUBBLE}
FLAGS: tuple[Flag, ...] = get_args(Flag)

# Share of a tile from which it is flagged. A little ink already shows what a person marked.
LEAST_SHARE: dict[Flag, float] = {"pen": 0.05, "fold": 0.25, "bubble": 0.25}
COARSEST_DETAIL_MPP = 5.0  # blur is not judged at coarser scales, where nuclei are lost
# Ratio of detail at one fine pixel to detail at two, below which tissue is out of focus: at 4 µm/px, H&E in focus has
# 0.8 to 2, behind a Gaussian of 2.5 µm 0.7, of 5 µm 0.4 (benchmarks/RESULTS.md)
SHARP = 0.65
JUDGED_SHARE = 0.5  # blur is judged on tiles with at least this share of tissue


def flag_tiles(overview: Overview, tissue: TissueMask, boxes_px0: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Compute the flags of each tile.

    Returns uint8, shape (N,), bits of :data:`BITS`.
    """
    flags = np.zeros(len(boxes_px0), np.uint8)
    for flag, seen in artifact_maps(overview, tissue).items():
        if seen.any():
            share = AreaSums(seen, tissue.px0_per_mask_px).mean(boxes_px0)
            flags[share >= LEAST_SHARE[flag]] |= BITS[flag]
    flags[(flags == 0) & _blurred(overview, tissue, boxes_px0)] |= BLUR  # ink and air have no detail
    return flags


def artifact_maps(overview: Overview, tissue: TissueMask) -> dict[Flag, Bools]:
    """Return where pen, folds and bubbles lie: bool, each of the thumbnail's shape."""
    step_um = float(np.sqrt(overview.mpp.x * overview.mpp.y))
    seen = tissue.seen
    if seen is None:
        return {}
    return {
        "pen": seen.pen,
        "fold": find_folds(seen.od, tissue.mask, seen.pen, step_um=step_um),
        "bubble": seen.bubble,
    }


def bits_of(flags: Iterable[Flag]) -> int:
    """Return the bits of some names."""
    return sum(BITS[flag] for flag in set(flags))


def _blurred(overview: Overview, tissue: TissueMask, boxes_px0: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Find tiles whose finest detail is weak compared with the next coarser."""
    fine_mpp, size = overview.fine_mpp, tissue.mask.shape
    if max(fine_mpp) > COARSEST_DETAIL_MPP or not tissue.mask.any() or min(size) * overview.factor < 16:
        return np.zeros(len(boxes_px0), bool)
    image = Image.fromarray(overview.fine).convert("L")
    # A block of 8 x 8 fine pixels holds 32 differences of the fine picture (every second row is enough) and 16 of the
    # picture at half size.
    fine, half = _detail(np.asarray(image)[::2], (4, 8)), _detail(np.asarray(image.reduce(2)), (4, 4))
    per_block = Scale(
        8 * tissue.px0_per_mask_px.x / overview.factor,
        8 * tissue.px0_per_mask_px.y / overview.factor,
    )
    judged = tissue.fraction(boxes_px0) >= JUDGED_SHARE
    finest, next_finest = (AreaSums(values, per_block).mean(boxes_px0) for values in (fine, half))
    return np.asarray(judged & (finest / 32 < SHARP * next_finest / 16))


def _detail(grey: NDArray[np.uint8], block: tuple[int, int]) -> NDArray[np.int32]:
    """Return absolute second differences along x, summed over blocks (rows, columns); incomplete blocks are cut."""
    values = grey.astype(np.int16)
    difference = np.zeros(grey.shape, np.int16)
    difference[:, 1:-1] = np.abs(2 * values[:, 1:-1] - values[:, :-2] - values[:, 2:])
    rows, columns = grey.shape[0] // block[0], grey.shape[1] // block[1]
    whole = difference[: rows * block[0], : columns * block[1]].reshape(-1, columns, block[1])
    return np.asarray(whole.sum(2, dtype=np.int32).reshape(rows, block[0], columns).sum(1), np.int32)
