"""Artefacts on a slide and the quality flags of its tiles: pen, blur, fold, bubble. Classical image processing, pure.

Pen is found in :mod:`wsi_ips.tissue.ink`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from wsi_ips.geometry import Scale
from wsi_ips.slides import Overview
from wsi_ips.tissue.filters import EIGHT_CONNECTED, Bools, Bytes, box_mean, closed, dilated, extremes, without_small
from wsi_ips.tissue.ink import BESIDE_PX, OPAQUE_OD, SMALLEST_PX, widened, widths_long
from wsi_ips.tissue.mask import AreaSums, TissueMask

OD_UNIT = 100  # optical densities are kept as whole numbers of 1/100
# A fold is at least this many times as dense as the 75th percentile of the tissue; two layers would be 2
FOLD_FACTOR = 1.6
LEAST_FOLD_OD = 25
FOLD = 2.5  # least length of a fold in widths
# Density of a fold as a multiple of that of the tissue beside it: two or three layers, whose edges are not sharp
FOLD_CONTRAST = (1.4, 3.3)
# Largest difference between the shares that red, green and blue have in the density of a fold and of its surroundings
SAME_COLOUR = 0.015
FOLD_UM = 24.0  # narrower dark lines are vessels, crowded nuclei, edges
FOLD_UM2 = 5_000.0
# Mean optical density of the rim of a bubble and of the edge of a coverslip: grey, neither glass nor ink
RIM_OD = (15, 150)
RIM_SPREAD = 0.35  # largest difference between the channels of a grey, as a share of the densest
BUBBLE_UM = 150.0  # smaller rings are vacuoles
BUBBLE_PX = 12  # on fewer pixels, a ring cannot be told from any dark spot
HOLLOW = 0.4  # least share of a bubble that its rim leaves free
RIM_UM = 100.0  # wider rings were drawn with a pen
ROUND = 0.7  # least share of a bubble's bounding ellipse that its filled ring covers
Flag = Literal["pen", "blur", "fold", "bubble"]
# Bits of column ``flags`` of the tile index; further bits are 0
BITS: dict[Flag, int] = {"pen": 1, "blur": 2, "fold": 4, "bubble": 8}
FLAGS: tuple[Flag, ...] = get_args(Flag)

# Share of a tile from which it is flagged. A little ink already shows what a person marked.
LEAST_SHARE: dict[Flag, float] = {"pen": 0.05, "fold": 0.25, "bubble": 0.25}
COARSEST_DETAIL_MPP = 5.0  # blur is not judged at coarser scales, where nuclei are lost
# Ratio of detail at one fine pixel to detail at two, below which tissue is out of focus: at 4 µm/px, H&E in focus has
# 0.8 to 2, behind a Gaussian of 2.5 µm 0.7, of 5 µm 0.4 (benchmarks/RESULTS.md)
SHARP = 0.65
MOST_EXCLUDED = 0.05  # a flag that takes a larger share of the tissue is more likely wrong than right
JUDGED_SHARE = 0.5  # blur is judged on tiles with at least this share of tissue


def densities(planes: tuple[Bytes, Bytes, Bytes], white: tuple[int, int, int]) -> tuple[Bytes, Bytes, Bytes]:
    """Return the optical density per channel relative to the colour of the glass, in units of 1/100, 0 to 240."""
    levels = np.maximum(np.arange(256), 1)
    red, green, blue = (
        np.rint(OD_UNIT * np.clip(np.log10(of_glass / levels), 0, 2.4)).astype(np.uint8)[plane]
        for plane, of_glass in zip(planes, white, strict=True)
    )
    return red, green, blue


def find_folds(od: tuple[Bytes, Bytes, Bytes], tissue: Bools, pen: Bools, *, step_um: float) -> Bools:
    """Find folds: bands much denser than the rest of this slide and than the tissue beside them, of its colour.

    Where a section lies double, both dyes absorb twice. Crowded nuclei are dense too, but have more haematoxylin.
    """
    nothing = np.zeros(tissue.shape, bool)
    tissue = tissue & ~pen & ~dilated(extremes(od)[0] >= OPAQUE_OD, BESIDE_PX)
    if not tissue.any():
        return nothing
    mean = (od[0].astype(np.uint16) + od[1] + od[2]) // 3
    mean = box_mean(mean.astype(np.uint8), _odd(FOLD_UM / step_um))
    usual = float(np.percentile(mean[tissue], 75))
    dense = (mean > max(LEAST_FOLD_OD, FOLD_FACTOR * usual)) & tissue
    smallest_px = max(SMALLEST_PX, math.ceil(FOLD_UM2 / step_um**2))
    whole = without_small(closed(dense, max(1, round(FOLD_UM / step_um / 2))) & tissue, smallest_px)
    labels, _ = ndimage.label(whole, structure=EIGHT_CONNECTED)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        wide = widened(box, BESIDE_PX)
        band = labels[wide] == number
        beside = dilated(band, BESIDE_PX) & tissue[wide] & ~dense[wide]
        if widths_long(band) > FOLD and _is_doubled([plane[wide] for plane in od], band, beside):
            nothing[wide] |= band
    return nothing


def _is_doubled(od: Sequence[Bytes], band: Bools, beside: Bools) -> bool:
    """Return whether a band is denser than the tissue beside it, and of the same colour."""
    if not beside.any():
        return False
    over, under = (np.array([plane[where].mean() for plane in od]) for where in (band, beside))
    turned = np.abs(over / over.sum() - under / max(1e-6, under.sum())).max()
    least, most = (times * under.sum() for times in FOLD_CONTRAST)
    return bool(least <= over.sum() <= most and turned <= SAME_COLOUR)


def find_bubbles(od: tuple[Bytes, Bytes, Bytes], *, step_um: float) -> Bools:
    """Find air under the coverslip: a closed thin grey ring, and what it encloses."""
    low, high = extremes(od)
    spread = high - low
    grey = (low >= RIM_OD[0]) & (high <= RIM_OD[1]) & (spread <= 4 + RIM_SPREAD * high)
    found = np.zeros(grey.shape, bool)
    least_px = max(BUBBLE_PX, BUBBLE_UM / step_um)
    if np.count_nonzero(grey) < math.pi * least_px:
        return found
    rim = closed(grey, 1)
    labels, _ = ndimage.label(rim, structure=EIGHT_CONNECTED)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        height, width = (side.stop - side.start for side in box)
        if min(height, width) < least_px or max(height, width) > 3 * min(height, width):
            continue
        ring = labels[box] == number
        around = math.pi / 2 * (height + width)
        if np.count_nonzero(ring) * step_um > 2 * RIM_UM * around:
            continue
        filled = ndimage.binary_fill_holes(ring)
        area = np.count_nonzero(filled)
        width_um = np.count_nonzero(ring) / math.sqrt(math.pi * area) / 2 * step_um
        hollow = np.count_nonzero(ring) <= (1 - HOLLOW) * area
        if width_um <= RIM_UM and hollow and area >= ROUND * math.pi / 4 * height * width:
            found[box] |= filled
    return found


def _odd(side: float) -> int:
    """Return the odd whole number nearest to a side, at most 15."""
    return min(15, 2 * round((side - 1) / 2) + 1) if side > 1 else 1


def flag_tiles(overview: Overview, tissue: TissueMask, boxes_px0: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the flags of each tile (N,), bits of :data:`BITS`; boxes x, y, width, height are (N, 4) level-0 pixels."""
    flags = np.zeros(len(boxes_px0), np.uint8)
    maps: dict[Flag, Bools] = {}
    if (seen := tissue.seen) is not None:
        step_um = float(np.sqrt(overview.mpp.x * overview.mpp.y))
        fold = find_folds(seen.od, tissue.mask, seen.pen, step_um=step_um)
        maps = {"pen": seen.pen, "fold": fold, "bubble": seen.bubble}
    for flag, where in maps.items():
        if where.any():
            share = AreaSums(where, tissue.px0_per_mask_px).mean(boxes_px0)
            flags[share >= LEAST_SHARE[flag]] |= BITS[flag]
    flags[(flags == 0) & _blurred(overview, tissue, boxes_px0)] |= BITS["blur"]  # ink and air have no detail
    return flags


def excluding(
    names: Sequence[Flag], flags: NDArray[np.uint8], share: NDArray[np.float32], tissue: TissueMask
) -> tuple[int, tuple[str, ...]]:
    """Return the bits of the flags that exclude tiles, and a text on each that would exclude too much to be right.

    ``share`` is that of tissue in each tile. Ink of which most lies on glass is certain, so it excludes any amount.
    """
    bits, doubtful = 0, []
    for name in dict.fromkeys(names):
        lost = float(share[(flags & BITS[name]) > 0].sum() / max(1e-9, share.sum()))
        if lost <= MOST_EXCLUDED or (name == "pen" and _is_mostly_on_glass(tissue)):
            bits |= BITS[name]
        else:
            doubtful.append(f"{name}: it would leave out {lost:.0%} of the tissue, which is kept; check its picture")
    return bits, tuple(doubtful)


def _is_mostly_on_glass(tissue: TissueMask) -> bool:
    pen = tissue.seen.pen if tissue.seen is not None else np.zeros_like(tissue.mask)
    return 2 * int(np.count_nonzero(pen & tissue.mask)) <= int(np.count_nonzero(pen))


def _blurred(overview: Overview, tissue: TissueMask, boxes_px0: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Find tiles whose finest detail is weak compared with the next coarser."""
    fine_mpp, size = overview.fine_mpp, tissue.mask.shape
    if max(fine_mpp) > COARSEST_DETAIL_MPP or not tissue.mask.any() or min(size) * overview.factor < 16:
        return np.zeros(len(boxes_px0), bool)
    image = Image.fromarray(overview.fine).convert("L")
    # A block of 8 x 8 fine pixels holds 32 differences of the fine picture (every second row is enough) and 16 of the
    # picture at half size.
    fine, half = _detail(np.asarray(image)[::2], (4, 8)), _detail(np.asarray(image.reduce(2)), (4, 4))
    per_block = Scale(*(8 * side / overview.factor for side in tissue.px0_per_mask_px))
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
