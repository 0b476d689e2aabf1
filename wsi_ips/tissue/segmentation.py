"""Tissue from a thumbnail: a sequence of thresholds, cleaned by sizes in µm. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from wsi_ips.geometry import Scale, Size
from wsi_ips.slides.base import RGB
from wsi_ips.tissue.artifacts import densities, find_bubbles
from wsi_ips.tissue.filters import (
    EIGHT_CONNECTED,
    Bools,
    Bytes,
    box_mean,
    box_share,
    closed,
    dilated,
    roughness,
    without_small,
)
from wsi_ips.tissue.ink import find_pen, widened
from wsi_ips.tissue.mask import Seen, TissueMask
from wsi_ips.tissue.methods import LADDER, TISSUE_METHODS, Found, View, attempts, distrust, find_fat, view_of

SMOOTHING_UM = 16.0  # side of the box mean on saturation and density
CLOSING_UM = 32.0  # gaps up to this width are closed
UNDER_PEN_UM = 500.0  # width of the surroundings that tell whether a pen mark lies on tissue or on glass

# A film takes away less than this much light (of 255), and varies by at most so many times as much as the glass, or so
# many grey levels: half of what the palest tissue has at 20 µm/px
FILM_DENSITY, FILM_TEXTURE, LEAST_FILM_TEXTURE = 18, 1.5, 0.6
GREY_DENSITY = 48  # a grey film, as a shadow is, takes away less than this
FILM_BESIDE = 0.5  # least share of tissue round a pale place with which it belongs to the tissue
EDGE_LENGTH, EDGE_WIDTH, LINE_WIDTH = 0.5, 0.25, 0.025  # shares of the picture's sides that an edge takes
UNTEXTURED = 0.1  # share of a broad edge, with its mounting medium, that is as smooth as glass


@dataclass(frozen=True)
class TissueRules:
    """Rules for separating tissue from glass."""

    # lowest threshold on saturation (0-1) of method `otsu`; half of it is the lowest of `adaptive`
    min_saturation: float = 0.06
    min_area_um2: float = 40_000.0  # smaller pieces are dropped
    max_hole_um2: float = 20_000.0  # holes up to this area are filled
    method: str = "auto"  # one of `wsi_ips.tissue.methods.TISSUE_METHODS`
    model: Path | None = None  # file of the network of method `model`


def segment_tissue(thumbnail: RGB, *, mpp: Scale, px0_size: Size, rules: TissueRules | None = None) -> TissueMask:
    """Separate tissue from glass on the thumbnail (of scale ``mpp``) of a whole slide; the mask may be all False."""
    rules = rules or TissueRules()
    if rules.method == "all":  # a plain image has neither glass nor ink, so artefacts are not looked for either
        height, width = thumbnail.shape[:2]
        scale = Scale(px0_size.width / width, px0_size.height / height)
        return TissueMask(np.ones((height, width), bool), scale, 0.0, "all of the image", rung="all")
    step_um = math.sqrt(mpp.x * mpp.y)
    view, seen = _look(thumbnail, mpp)
    if rules.method in ("auto", *LADDER):
        best, passed = _first_trusted(view, rules, step_um)
    else:
        share = TISSUE_METHODS[rules.method].load()(thumbnail, mpp, rules.model)
        kept = without_small(share >= 0.5, math.ceil(rules.min_area_um2 / step_um**2))
        best, passed = Found(rules.method, kept, 0.5, "share of 0.5 by another program"), []
    mask = best.mask if best.mask is not None else np.zeros(seen.pen.shape, bool)
    if seen.pen.any() and mask.any():
        # Pen lies on tissue where most of what surrounds it, and is not pen, is tissue.
        side = 2 * round(UNDER_PEN_UM / step_um / 2) + 1
        mask = mask | (seen.pen & (2 * box_share(mask & ~seen.pen, side) > box_share(~seen.pen, side)))
    mask = ~without_small(~mask, math.floor(rules.max_hole_um2 / step_um**2) + 1)
    height, width = mask.shape
    return TissueMask(
        mask=mask,
        px0_per_mask_px=Scale(px0_size.width / width, px0_size.height / height),
        threshold=best.threshold,
        method=f"{best.rung}: {best.detail} at {step_um:.3g} µm/px" + (f" ({'; '.join(passed)})" if passed else ""),
        rung=best.rung,
        passed=tuple(passed),
        seen=seen,
    )


def with_artifacts(tissue: TissueMask, thumbnail: RGB, *, mpp: Scale) -> TissueMask:
    """Return a drawn mask with the artefacts found on the thumbnail (of the mask's shape), to flag its tiles."""
    return replace(tissue, seen=_look(thumbnail, mpp)[1])


def _first_trusted(view: View, rules: TissueRules, step_um: float) -> tuple[Found, list[str]]:
    """Return what the first trusted method found (else the last), and why the others were rejected."""
    smallest_px = math.ceil(rules.min_area_um2 / step_um**2)
    fat = find_fat(view, step_um=step_um)
    passed: list[str] = []
    best = Found("bounded", np.zeros_like(fat), 1.0, "no threshold could be used")
    for found in attempts(view, min_saturation=rules.min_saturation, method=rules.method):
        if found.mask is None:
            passed.append(f"{found.rung}: {found.detail}")
            continue
        candidate = closed(found.mask, round(CLOSING_UM / step_um / 2))
        if np.count_nonzero(candidate) >= smallest_px:
            candidate |= fat
        mask = _without_films(candidate, view, smallest_px=smallest_px)
        mask = without_small(mask, smallest_px)
        best = replace(found, mask=mask)
        reason = distrust(candidate, mask)
        if not reason:
            break
        passed.append(f"{found.rung} {reason}")
    return best, passed


def _without_films(mask: Bools, view: View, *, smallest_px: int) -> Bools:
    """Drop what lies on the glass and is no tissue: bands of mounting medium, smears, and edges of the coverslip.

    A film is pale or grey, without texture, and surrounded by glass. An edge runs straight along most of the picture
    to its border, and is thin or without texture.
    """
    density, saturation = view.density, view.saturation
    grey = (density < GREY_DENSITY) & (saturation < density // 2)
    pale = without_small(mask & ((density < FILM_DENSITY) | grey), smallest_px)
    labels, _ = ndimage.label(mask, structure=EIGHT_CONNECTED)
    long = [(n, box) for n, box in enumerate(ndimage.find_objects(labels), 1) if _is_long(box, mask.shape)]
    if not pale.any() and not long:
        return mask
    smooth, kept = _smooth(view.planes, mask), mask.copy()
    for number, box in long:
        piece = labels[box] == number
        if _is_edge(piece, smooth[box], mask.shape):
            kept[box] &= ~piece
    labels, _ = ndimage.label(without_small(pale & smooth & kept, smallest_px), structure=EIGHT_CONNECTED)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        wide = widened(box, 3)
        piece = labels[wide] == number
        ring = dilated(piece, 3) & ~piece
        if np.count_nonzero(ring & mask[wide]) < FILM_BESIDE * np.count_nonzero(ring):
            kept[wide] &= ~piece
    return kept


def _smooth(planes: tuple[Bytes, Bytes, Bytes], mask: Bools) -> Bools:
    """Find pixels around which the picture varies hardly more than its glass does."""
    total = planes[0].astype(np.int16) + planes[1] + planes[2]
    local = box_mean(np.minimum(roughness(total), 255).astype(np.uint8), 9)  # 27 to a grey level
    glass = local[~dilated(mask, 6)]
    noise = FILM_TEXTURE * float(np.median(glass)) if glass.size else 0.0
    return np.asarray(local <= max(noise, 27 * LEAST_FILM_TEXTURE))


def _is_long(box: tuple[slice, slice], shape: tuple[int, ...]) -> bool:
    """Return whether a piece runs along most of the picture, ends at its border, and takes little of the other axis."""
    spans = [(side.stop - side.start) / most for side, most in zip(box, shape, strict=True)]
    ends = [side.start == 0 or side.stop == most for side, most in zip(box, shape, strict=True)]
    return any(spans[k] >= EDGE_LENGTH and ends[k] and spans[1 - k] <= EDGE_WIDTH for k in (0, 1))


def _is_edge(piece: Bools, smooth: Bools, shape: tuple[int, ...]) -> bool:
    """Return whether a long piece is straight, and as thin as a line or partly without texture, as no tissue is."""
    if piece.shape[0] / shape[0] < piece.shape[1] / shape[1]:
        piece, smooth, shape = piece.T, smooth.T, shape[::-1]  # now one row for each step along the piece
    steps = np.flatnonzero(piece.any(1))
    across = piece[steps].sum(1)
    middle = (piece[steps] * np.arange(piece.shape[1])).sum(1) / across
    bent = middle - np.polyval(np.polyfit(steps, middle, 1), steps)
    thin, untextured = across.mean() <= LINE_WIDTH * shape[1], np.count_nonzero(piece & smooth) / across.sum()
    return bool(np.std(bent) <= LINE_WIDTH * shape[1] and (thin or untextured >= UNTEXTURED))


def _look(thumbnail: RGB, mpp: Scale) -> tuple[View, Seen]:
    """Return the thumbnail without its ink, and the artefacts on it."""
    step_um = math.sqrt(mpp.x * mpp.y)
    view = view_of(thumbnail, smoothing_px=max(1, 2 * round((SMOOTHING_UM / step_um - 1) / 2) + 1))
    od = densities(view.planes, view.white)
    bubble = find_bubbles(od, step_um=step_um)
    pen, unsure = find_pen(od, step_um=step_um)
    pen &= ~bubble
    seen = Seen(od, pen, bubble, 1 - float(view.usable.mean()), float(unsure.mean()))
    return replace(view, usable=view.usable & ~pen), seen
