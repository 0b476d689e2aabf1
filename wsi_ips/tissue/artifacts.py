"""Artefacts on a slide and the quality flags of its tiles: pen, blur, fold, bubble. Classical image processing, pure.

Colours are compared as optical densities (Beer and Lambert): haematoxylin and eosin absorb more green than red light
and blue light least, at any concentration (Ruifrok and Johnston 2001). Inks absorb differently.
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
from wsi_ips.tissue.filters import EIGHT_CONNECTED, Bools, Bytes, box_mean, closed, dilated, over_squares, without_small
from wsi_ips.tissue.mask import AreaSums, TissueMask

OD_UNIT = 100  # optical densities are kept as whole numbers of 1/100
INK_UM2 = 40_000.0  # smaller spots of an ink's colour are pigment, blood or splashes: the tip of a pen has 0.3 mm
SMALLEST_PX = 16  # texture cannot be judged on fewer pixels
STAINED_OD = 10  # what absorbs less is glass
# Texture, as a share of the density, below which a colour is a film of dye: on overviews of 8 to 40 µm/px ink on glass
# has 0.01 to 0.05, tissue with nuclei 0.05 to 0.14. Blurred pictures have less of it, so it is also compared with the
# rest of the tissue: a mark begins below the first of these shares and goes on below the second.
FLAT, OF_TISSUE_TEXTURE = 0.045, (0.5, 0.8)
CLEAR_OD = 100  # coloured ink lets some light of its own colour through
OPAQUE_OD = 180  # what lets no light through at all was not scanned, or is the frame of the picture
# A stroke of a pure colour: no pen is wider, and its edges give it more texture than FLAT, but less than crowded nuclei
WIDEST_STROKE_UM, STROKE_TEXTURE = 3_000.0, 0.125
PURE = 0.4  # share of a mark that has a purer colour than stains reach
LARGE_PX = 200_000
FEW_PX, LEAST_TEXTURE = 100, 0.012  # tissue of fewer pixels, or flatter than this, is nothing to compare with
EDGE_UM = 100.0  # width of the rim over which ink thins out
LUMEN_UM = 40.0  # glass this near to tissue is a lumen, or the cleft along its edge
# Share of the surroundings of a mark that is glass, from which it is ink; less is enough for a line, which crosses
LEAST_ON_GLASS, STROKE_ON_GLASS = 0.25, 0.05
LINE = 4.0  # least length of a line in widths
# Sum of the densities (1/100) of three channels above which no section of 3 to 5 µm is, blood included, and how many
# times as dense as the tissue of this slide. Not for black, which pigments reach.
DENSE_OD, DENSER = 165, 2.0
MOSTLY_FLAT = 0.5  # share of a mark that is flat, from which it may be ink although no glass shows it
# A fold is at least this many times as dense as the 75th percentile of the tissue; two layers would be 2
FOLD_FACTOR = 1.6
LEAST_FOLD_OD = 25
FOLD = 2.5  # least length of a fold in widths
# Density of a fold as a multiple of that of the tissue beside it: two or three layers, whose edges are not sharp
FOLD_CONTRAST = (1.4, 3.3)
BESIDE_PX = 4  # width of the tissue beside a fold with which it is compared
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


def find_pen(od: tuple[Bytes, Bytes, Bytes], *, step_um: float) -> tuple[Bools, Bools]:
    """Find ink; return what certainly is, and what has its colour and flatness but lies wholly on tissue.

    The colour alone says little: DAB beside its counterstain, trichrome, PAS, melanin and dark haematoxylin share it.
    Ink is told from them by what it is: a film of dye without nuclei, drawn on the glass. So a mark has less texture
    than the tissue of this slide, or a purer colour than stains reach, and continues over glass, or is far denser than
    any section.
    """
    red, green, blue = (plane.astype(np.int16) for plane in od)
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    black, cold, stained = _is_black(low, high), _is_cold(red, green), high > STAINED_OD
    coloured = black | cold | _is_red(red, green, blue)
    pure = _is_pure(red, green, blue) & (low < CLEAR_OD)
    if 2 * np.count_nonzero(pure) > np.count_nonzero(stained):
        pure[:] = False  # nothing to compare with: this is the stain, of Giemsa for example
    pen, unsure = np.zeros(red.shape, bool), np.zeros(red.shape, bool)
    smallest_px = max(SMALLEST_PX, math.ceil(INK_UM2 / step_um**2))
    if np.count_nonzero(coloured) < smallest_px:
        return pen, unsure
    total = red + green + blue
    flat, flattish, texture, usual = _flat(total, coloured, stained)
    # Round a mark the ink thins out, and over tissue its colour mixes with the stain's.
    edge = coloured | (_is_cold(10 * red, 8 * green) & (red > 12))
    marks = dilated(closed(flattish | pure, 1), max(2, round(EDGE_UM / step_um))) & edge
    beside = dilated(stained & ~dilated(edge, 2), max(1, round(LUMEN_UM / step_um)))  # tissue, and lumina in it
    labels, count = ndimage.label(marks, structure=EIGHT_CONNECTED)
    alike: list[tuple[tuple[slice, slice], Bools]] = []
    areas, flats, pures = (np.bincount(labels[where], minlength=count + 1) for where in (marks, flat, pure))
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        is_pure = pures[number] > max(smallest_px, PURE * areas[number])
        is_pure = is_pure and _is_drawn(labels[widened(box, 1)] == number, texture[widened(box, 1)], step_um)
        if flats[number] < smallest_px and not is_pure:
            continue
        wide = widened(box, 5)
        mark = labels[wide] == number
        ring = dilated(mark, 5) & ~dilated(mark, 2) & ~edge[wide]
        on_glass = float((ring & ~beside[wide]).sum() / max(1, int(ring.sum())))
        mostly = usual > 0 and flats[number] > MOSTLY_FLAT * areas[number]
        dense = mostly and 2 * np.count_nonzero(black[wide] & mark) < areas[number]
        dense = dense and total[wide][mark].mean() > max(DENSE_OD, DENSER * usual)
        line = _widths_long(mark) > LINE
        if dense or (on_glass >= (STROKE_ON_GLASS if line else LEAST_ON_GLASS) and (line or usual or is_pure)):
            pen[wide] |= mark
        elif is_pure:
            alike.append((wide, mark))
        elif mostly:
            unsure[wide] |= mark
    for wide, mark in alike:  # spots on the tissue, of the pen that was used on the glass
        (pen if _shares_a_pen(mark, wide, pen, cold) else unsure)[wide] |= mark
    return dilated(pen, 1), unsure


def _is_drawn(mark: Bools, texture: NDArray[np.float32], step_um: float) -> bool:
    """Return whether a mark of a pure colour is as narrow as a stroke and smoother than a section full of nuclei."""
    width_um = step_um * _width(mark)
    return width_um <= WIDEST_STROKE_UM and float(np.median(texture[mark])) <= STROKE_TEXTURE


def _shares_a_pen(mark: Bools, box: tuple[slice, slice], pen: Bools, cold: Bools) -> bool:
    """Return whether ink that was found is of the kind of a mark: cold, or red."""
    is_cold = 2 * np.count_nonzero(mark & cold[box]) > np.count_nonzero(mark)
    return bool((pen & (cold == is_cold)).any())


def _is_cold(red: NDArray[np.int16], green: NDArray[np.int16]) -> Bools:
    """Find green and blue ink: they absorb more red than green light."""
    return np.asarray((red > 12) & (10 * red > 11 * green))


def _is_red(red: NDArray[np.int16], green: NDArray[np.int16], blue: NDArray[np.int16]) -> Bools:
    """Find red ink: it lets red light through and hardly any blue; eosin lets blue through, only blood is similar."""
    return np.asarray((green > 40) & (8 * blue > 5 * green) & (4 * red < green))


def _is_pure(red: NDArray[np.int16], green: NDArray[np.int16], blue: NDArray[np.int16]) -> Bools:
    """Find colours of ink that stains do not reach: absorbing one and a half times as much red as green, or no red."""
    cold = (red > 12) & _is_cold(10 * red, 14 * green)
    return np.asarray(cold | (_is_red(3 * red // 2, green, blue) & (10 * blue > 7 * green)))


def _is_black(low: NDArray[np.int16], high: NDArray[np.int16]) -> Bools:
    """Find black ink: it absorbs all colours alike."""
    return np.asarray((low > 42) & (low < OPAQUE_OD) & (100 * (high - low) < 36 * high))


def _flat(total: NDArray[np.int16], coloured: Bools, stained: Bools) -> tuple[Bools, Bools, NDArray[np.float32], float]:
    """Find pixels of an ink's colour that are certainly and perhaps flat; also texture and the usual density of tissue.

    Texture is the difference to the mean of 3 x 3 pixels as a share of the density, taken over 9 x 9 pixels. Edges of
    the colour do not count. The density is 0 where no tissue with texture is left to compare with.
    """
    texture = np.abs(9 * total - over_squares(np.pad(total, 1, mode="edge"), 3, np.add))  # 9 * 720 at most
    inside, tissue = ~dilated(~coloured, 1), ~dilated(~stained | coloured, 1)
    some = (slice(None, None, 2), slice(None, None, 2))
    of_tissue = total[some][tissue[some]]
    textured, usual = 0.0, 0.0
    if of_tissue.size > FEW_PX:
        textured = float(texture[some][tissue[some]].mean()) / (9 * float(of_tissue.mean()))
        usual = float(np.percentile(of_tissue, 75))
    if textured < LEAST_TEXTURE:
        textured, usual = 1.0, 0.0
    local = [over_squares(np.pad(values * inside, 4).astype(np.int32), 9, np.add) for values in (texture, total)]
    varies = np.where(inside, local[0] / np.maximum(1, 9 * local[1]), 0).astype(np.float32)
    flat, flattish = (inside & (varies < min(FLAT, share * textured)) for share in OF_TISSUE_TEXTURE)
    return flat, flattish, varies, usual


def _widths_long(mark: Bools) -> float:
    """Return the length of a mark in widths, as if it were a line."""
    return float(np.count_nonzero(mark)) / _width(mark) ** 2


def _width(mark: Bools) -> float:
    """Return the largest width of a mark in pixels, measured on every third pixel of a large one."""
    step = 3 if mark.size > LARGE_PX else 1
    return max(1.0, 2 * step * float(ndimage.distance_transform_edt(np.pad(mark[::step, ::step], 1)).max()))


def find_folds(od: tuple[Bytes, Bytes, Bytes], tissue: Bools, pen: Bools, *, step_um: float) -> Bools:
    """Find folds: bands much denser than the rest of this slide and than the tissue beside them, of its colour.

    Where a section lies double, both dyes absorb twice. Crowded nuclei are dense too, but have more haematoxylin.
    """
    nothing = np.zeros(tissue.shape, bool)
    red, green, blue = od
    tissue = tissue & ~pen & ~dilated(np.minimum(np.minimum(red, green), blue) >= OPAQUE_OD, BESIDE_PX)
    if not tissue.any():
        return nothing
    mean = (red.astype(np.uint16) + green + blue) // 3
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
        if _widths_long(band) > FOLD and _is_doubled([plane[wide] for plane in od], band, beside):
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
    red, green, blue = od
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
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


def widened(box: tuple[slice, slice], by: int) -> tuple[slice, slice]:
    """Return a box of a picture with a margin of some pixels."""
    rows, columns = (slice(max(0, side.start - by), side.stop + by) for side in box)
    return rows, columns


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
