"""Tissue from a thumbnail: a sequence of thresholds, cleaned by sizes in µm. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from wsi_ips.geometry import Scale, Size
from wsi_ips.slides.base import RGB
from wsi_ips.tissue.artifacts import densities, find_bubbles, find_pen, without_films
from wsi_ips.tissue.filters import box_share, closed, without_small
from wsi_ips.tissue.mask import Seen, TissueMask
from wsi_ips.tissue.methods import Found, Method, View, attempts, distrust, find_fat, view_of

SMOOTHING_UM = 16.0  # side of the box mean on saturation and density
CLOSING_UM = 32.0  # gaps up to this width are closed
UNDER_PEN_UM = 500.0  # width of the surroundings that tell whether a pen mark lies on tissue or on glass


@dataclass(frozen=True)
class TissueRules:
    """Rules for separating tissue from glass."""

    # lowest threshold on saturation (0-1) of method `otsu`; half of it is the lowest of `adaptive`
    min_saturation: float = 0.06
    min_area_um2: float = 40_000.0  # smaller pieces are dropped
    max_hole_um2: float = 20_000.0  # holes up to this area are filled
    # `auto`: the first of `wsi_ips.tissue.methods` that can be trusted; `all`: everything is tissue; else the named one
    method: Method = "auto"


def segment_tissue(thumbnail: RGB, *, mpp: Scale, px0_size: Size, rules: TissueRules | None = None) -> TissueMask:
    """Separate tissue from glass on the thumbnail (of scale ``mpp``) of a whole slide; the mask may be all False."""
    rules = rules or TissueRules()
    if rules.method == "all":  # a plain image has neither glass nor ink, so artefacts are not looked for either
        height, width = thumbnail.shape[:2]
        scale = Scale(px0_size.width / width, px0_size.height / height)
        return TissueMask(np.ones((height, width), bool), scale, 0.0, "all of the image", rung="all")
    step_um = math.sqrt(mpp.x * mpp.y)
    view, seen = _look(thumbnail, mpp)
    best, passed = _first_trusted(view, rules, step_um)
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
        mask = without_films(candidate, view, smallest_px=smallest_px)
        mask = without_small(mask, smallest_px)
        best = replace(found, mask=mask)
        reason = distrust(candidate, mask)
        if not reason:
            break
        passed.append(f"{found.rung} {reason}")
    return best, passed


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
