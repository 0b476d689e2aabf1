"""Artefacts on a slide and the quality flags of its tiles: pen, blur, fold, bubble. Classical image processing, pure.

Colours are compared as optical densities (Beer and Lambert): haematoxylin and eosin absorb more green than red light
and blue light least, at any concentration (Ruifrok and Johnston 2001). Inks absorb differently.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from wsi_ips.geometry import Scale
from wsi_ips.slides import Overview
from wsi_ips.tissue.filters import EIGHT_CONNECTED, Bools, Bytes, box_mean, closed, dilated, without_small
from wsi_ips.tissue.mask import AreaSums, TissueMask

OD_UNIT = 100  # optical densities are kept as whole numbers of 1/100
INK_UM2 = 5_000.0  # smaller spots of an ink's colour are pigment, not pen
RED_INK_UM2 = 20_000.0  # smaller red spots are blood
MOST_INK = 0.3  # if a larger share of the stained picture has an ink's colour, it is the stain's colour
BLUER = 1.25  # blue ink absorbs this many times more red relative to green light than the slide's stain does
# A fold is at least this many times as dense as the 75th percentile of the tissue; two layers would be 2
FOLD_FACTOR = 1.6
LEAST_FOLD_OD = 25
FOLD_UM = 24.0  # narrower dark lines are vessels, crowded nuclei, edges
FOLD_UM2 = 5_000.0
# Mean optical density of the rim of a bubble and of the edge of a coverslip: grey, neither glass nor ink
RIM_OD = (15, 150)
RIM_SPREAD = 0.35  # largest difference between the channels of a grey, as a share of the densest
BUBBLE_UM = 150.0  # smaller rings are vacuoles
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
JUDGED_SHARE = 0.5  # blur is judged on tiles with at least this share of tissue


def densities(planes: tuple[Bytes, Bytes, Bytes]) -> tuple[Bytes, Bytes, Bytes]:
    """Return the optical density per channel in units of 1/100, 0 (white) to 240; input is relative to white."""
    table = np.rint(-OD_UNIT * np.log10(np.maximum(np.arange(256), 1) / 255)).astype(np.uint8)
    red, green, blue = (table[plane] for plane in planes)
    return red, green, blue


def find_pen(od: tuple[Bytes, Bytes, Bytes], *, pixel_um2: float) -> Bools:
    """Find green, blue, red and black ink; also finds the grey rim of a bubble, see :func:`find_bubbles`."""
    red, green, blue = (plane.astype(np.int16) for plane in od)
    stained = max(1, int(np.count_nonzero(green > 8)))
    inks = ((_cold, INK_UM2), (_red, RED_INK_UM2), (_black, INK_UM2))
    pen = np.zeros(red.shape, bool)
    for is_ink, smallest_um2 in inks:
        spots = is_ink(red, green, blue)
        spots = without_small(closed(spots, 1), math.ceil(smallest_um2 / pixel_um2)) if spots.any() else spots
        if np.count_nonzero(spots) <= MOST_INK * stained:
            pen |= spots
    return dilated(pen, 1) if pen.any() else pen


def _cold(red: NDArray[np.int16], green: NDArray[np.int16], _: NDArray[np.int16]) -> Bools:
    """Find green and blue ink: it absorbs more red than green light, which haematoxylin of any shade does not."""
    some = (slice(None, None, 4), slice(None, None, 4))  # enough for a median
    stained = green[some] > 20
    usual = float(np.median(red[some][stained] / green[some][stained])) if stained.any() else 0.0
    ratio = min(1.5, max(1.0, BLUER * usual)) if usual < 1 else BLUER * usual
    return np.asarray((red > 12) & (10 * red > round(10 * ratio) * green))


def _red(red: NDArray[np.int16], green: NDArray[np.int16], blue: NDArray[np.int16]) -> Bools:
    """Find red ink: it lets red light through and hardly any blue; eosin lets blue through, only blood is similar."""
    return np.asarray((green > 40) & (8 * blue > 5 * green) & (5 * red < green))


def _black(red: NDArray[np.int16], green: NDArray[np.int16], blue: NDArray[np.int16]) -> Bools:
    """Find black ink: it absorbs all colours alike."""
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    return np.asarray((low > 42) & (100 * (high - low) < 36 * high))


def find_folds(od: tuple[Bytes, Bytes, Bytes], tissue: Bools, pen: Bools, *, step_um: float) -> Bools:
    """Find tissue much denser than the rest of this slide: folds, thick or burnt places."""
    nothing = np.zeros(tissue.shape, bool)
    tissue = tissue & ~pen
    if not tissue.any():
        return nothing
    red, green, blue = od
    mean = (red.astype(np.uint16) + green + blue) // 3
    mean = box_mean(mean.astype(np.uint8), _odd(FOLD_UM / step_um))
    usual = float(np.percentile(mean[tissue], 75))
    dense = (mean > max(LEAST_FOLD_OD, FOLD_FACTOR * usual)) & tissue
    return without_small(dense, math.ceil(FOLD_UM2 / step_um**2)) if dense.any() else nothing


def find_bubbles(od: tuple[Bytes, Bytes, Bytes], *, step_um: float) -> Bools:
    """Find air under the coverslip: a closed thin grey ring, and what it encloses."""
    red, green, blue = od
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    spread = high - low
    grey = (low >= RIM_OD[0]) & (high <= RIM_OD[1]) & (spread <= 4 + RIM_SPREAD * high)
    found = np.zeros(grey.shape, bool)
    smallest = (BUBBLE_UM / step_um) ** 2 * math.pi / 4
    if np.count_nonzero(grey) < math.pi * BUBBLE_UM / step_um:
        return found
    rim = closed(grey, 1)
    labels, _ = ndimage.label(rim, structure=EIGHT_CONNECTED)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        height, width = (side.stop - side.start for side in box)
        if min(height, width) * step_um < BUBBLE_UM or max(height, width) > 3 * min(height, width):
            continue
        ring = labels[box] == number
        around = math.pi / 2 * (height + width)
        if np.count_nonzero(ring) * step_um > 2 * RIM_UM * around:
            continue
        filled = ndimage.binary_fill_holes(ring)
        area = np.count_nonzero(filled)
        width_um = np.count_nonzero(ring) / math.sqrt(math.pi * area) / 2 * step_um
        if width_um <= RIM_UM and area >= smallest and area >= ROUND * math.pi / 4 * height * width:
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
