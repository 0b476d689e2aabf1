"""Ink on a slide: what a pen drew beside or over the tissue. Classical image processing, pure.

Colours are compared as optical densities (Beer and Lambert): haematoxylin and eosin absorb more green than red light
and blue light least, at any concentration (Ruifrok and Johnston 2001). Inks absorb differently.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi_ips.tissue.filters import (
    EIGHT_CONNECTED,
    Bools,
    Bytes,
    box_mean,
    box_share,
    closed,
    dilated,
    extremes,
    over_squares,
    roughness,
)

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
# Ink on tissue is compared with the tissue within a square of this side; it is at most this wide, at this share of its
# area surely ink, and at its outline the density falls by this share. Texture is after a mean of 3 x 3 pixels.
AROUND_UM, WIDEST_ON_TISSUE_UM, SURE, LEAST_STEP, LAID_TEXTURE = 3_000.0, 1_500.0, 0.3, 0.2, 0.03
BLACK_OD = 300  # sum of three densities (1/100) that black ink on tissue reaches and pigment hardly does
MOSTLY_FLAT = 0.5  # share of a mark that is flat, from which it may be ink although no glass shows it
BESIDE_PX = 4  # width of the tissue beside a mark or a fold with which it is compared


def find_pen(od: tuple[Bytes, Bytes, Bytes], *, step_um: float) -> tuple[Bools, Bools]:
    """Find ink; return what certainly is, and what has its colour and flatness but lies wholly on tissue."""
    pen, unsure = _beside_glass(od, step_um)
    stained = extremes(od)[1] > STAINED_OD
    pen |= dilated(_on_tissue(od, stained & ~dilated(pen, BESIDE_PX), step_um), 1)
    return pen, unsure & ~pen


def _beside_glass(od: tuple[Bytes, Bytes, Bytes], step_um: float) -> tuple[Bools, Bools]:
    """Find ink that reaches over glass, or is denser than any section; returns the same as :func:`find_pen`.

    The colour alone says little: DAB beside its counterstain, trichrome, PAS, melanin and dark haematoxylin share it.
    Ink is told from them by what it is: a film of dye without nuclei, drawn on the glass. So a mark has less texture
    than the tissue of this slide, or a purer colour than stains reach, and continues over glass, or is far denser than
    any section.
    """
    red, green, blue = (plane.astype(np.int16) for plane in od)
    low, high = extremes((red, green, blue))
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
        line = widths_long(mark) > LINE
        if dense or (on_glass >= (STROKE_ON_GLASS if line else LEAST_ON_GLASS) and (line or usual or is_pure)):
            pen[wide] |= mark
        elif is_pure:
            alike.append((wide, mark))
        elif mostly:
            unsure[wide] |= mark
    for wide, mark in alike:  # spots on the tissue, of the pen that was used on the glass
        (pen if _shares_a_pen(mark, wide, pen, cold) else unsure)[wide] |= mark
    return dilated(pen, 1), unsure


def _on_tissue(od: tuple[Bytes, Bytes, Bytes], tissue: Bools, step_um: float) -> Bools:
    """Find ink that lies wholly on tissue: narrow smooth marks that add an ink's density to that of the tissue around.

    The light passes the section and the ink, so densities add. A region of another stain is not denser in every
    channel than its surroundings, and is seldom as smooth and narrow as a stroke or a dot.
    """
    found = np.zeros(tissue.shape, bool)
    smallest_px = max(SMALLEST_PX, math.ceil(INK_UM2 / step_um**2))
    smooth = [box_mean(plane, 3).astype(np.int16) for plane in od]
    total = np.asarray(sum(smooth), np.int16)
    around = _around(smooth, tissue, step_um)
    around = _around(smooth, tissue & (4 * total < 5 * sum(around)), step_um)  # without the ink itself
    clear = extremes(smooth)[0] < OPAQUE_OD
    for maybe, certain in _kinds_of_ink(smooth, [plane - under for plane, under in zip(smooth, around, strict=True)]):
        weak, strong = maybe & clear, certain & clear
        if np.count_nonzero(strong) < smallest_px:
            continue
        labels, count = ndimage.label(closed(weak, 1), structure=EIGHT_CONNECTED)
        areas, sure = (np.bincount(labels[where], minlength=count + 1) for where in (labels > 0, strong))
        boxes = ndimage.find_objects(labels)
        for number in np.flatnonzero((areas >= smallest_px) & (sure >= SURE * areas) & (sure > 0)):
            wide = widened(boxes[number - 1], BESIDE_PX)
            mark = labels[wide] == number
            if _is_laid_over(mark, total[wide], step_um):
                found[wide] |= mark
    return found


def _around(od: Sequence[NDArray[np.int16]], tissue: Bools, step_um: float) -> list[NDArray[np.int16]]:
    """Return the mean density per channel of the tissue within a square round each pixel; 0 where there is hardly any.

    It is measured on every few pixels, as it varies slowly.
    """
    side = AROUND_UM / step_um
    step = max(1, int(side / 16))
    some, (height, width) = (slice(None, None, step),) * 2, tissue.shape
    share = box_share(np.ascontiguousarray(tissue[some]), 2 * round(side / step / 2) + 1)
    means = []
    for plane in od:
        local = ndimage.uniform_filter((plane * tissue)[some].astype(np.float32), 2 * round(side / step / 2) + 1)
        mean = np.where(share > 0.05, local / np.maximum(share, 0.05), 0).astype(np.int16)
        means.append(mean.repeat(step, 0)[:height].repeat(step, 1)[:, :width])
    return means


def _kinds_of_ink(od: Sequence[NDArray[np.int16]], added: Sequence[NDArray[np.int16]]) -> Iterator[tuple[Bools, Bools]]:
    """Yield for cold, red and black ink where a density, and what it adds to that around, are perhaps and surely its.

    Where haematoxylin takes the place of eosin, it adds red density and removes green; ink removes nothing.
    """
    (red, green, blue), (more_red, more_green, more_blue) = od, added
    least, most = (reduce(of, added) for of in (np.minimum, np.maximum))
    adds, total = least > -12, red + green + blue
    most_red = 10 * more_red > 11 * np.maximum(more_green, more_blue)  # melanin absorbs blue most
    cold = adds & (more_red > 10) & most_red & (10 * red > 7 * green)
    yield cold, cold & (more_red > 20) & (10 * more_red > 12 * more_green)
    warm = adds & (more_green > 25) & (10 * more_blue > 6 * more_green) & (3 * more_red < more_green) & (green > 55)
    yield warm, warm & (more_green > 40) & (10 * more_blue > 7 * more_green) & (green > 65)
    black = (least > 25) & (2 * least > most) & (total > 200)
    yield black, black & (total > BLACK_OD)


def _is_laid_over(mark: Bools, total: NDArray[np.int16], step_um: float) -> bool:
    """Return whether a mark is as narrow as a stroke, smooth, and denser than what lies along most of its outline."""
    core, beside = mark & ~dilated(~mark, 1), dilated(mark, BESIDE_PX) & ~dilated(mark, 2)
    whole = ndimage.binary_fill_holes(mark)
    if np.count_nonzero(whole) > 2 * np.count_nonzero(mark):
        whole = mark  # a ring
    if not core.any() or not beside.any() or step_um * _width(whole) > WIDEST_ON_TISSUE_UM:
        return False
    inside = float(np.median(total[core]))
    smooth = float(np.median(roughness(total)[core])) < 9 * LAID_TEXTURE * inside
    return smooth and inside - float(np.percentile(total[beside], 75)) > LEAST_STEP * inside


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
    differs = roughness(total)
    inside, tissue = ~dilated(~coloured, 1), ~dilated(~stained | coloured, 1)
    some = (slice(None, None, 2), slice(None, None, 2))
    of_tissue = total[some][tissue[some]]
    textured, usual = 0.0, 0.0
    if of_tissue.size > FEW_PX:
        textured = float(differs[some][tissue[some]].mean()) / (9 * float(of_tissue.mean()))
        usual = float(np.percentile(of_tissue, 75))
    if textured < LEAST_TEXTURE:
        textured, usual = 1.0, 0.0
    local = [over_squares(np.pad(values * inside, 4).astype(np.int32), 9, np.add) for values in (differs, total)]
    varies = np.where(inside, local[0] / np.maximum(1, 9 * local[1]), 0).astype(np.float32)
    flat, flattish = (inside & (varies < min(FLAT, share * textured)) for share in OF_TISSUE_TEXTURE)
    return flat, flattish, varies, usual


def widths_long(mark: Bools) -> float:
    """Return the length of a mark in widths, as if it were a line."""
    return float(np.count_nonzero(mark)) / _width(mark) ** 2


def _width(mark: Bools) -> float:
    """Return the largest width of a mark in pixels, measured on every third pixel of a large one."""
    step = 3 if mark.size > LARGE_PX else 1
    return max(1.0, 2 * step * float(ndimage.distance_transform_edt(np.pad(mark[::step, ::step], 1)).max()))


def widened(box: tuple[slice, slice], by: int) -> tuple[slice, slice]:
    """Return a box of a picture with a margin of some pixels."""
    rows, columns = (slice(max(0, side.start - by), side.stop + by) for side in box)
    return rows, columns
