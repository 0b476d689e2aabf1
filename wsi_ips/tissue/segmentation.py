"""Tissue from a thumbnail: a ladder of thresholds, cleaned by sizes in µm. Pure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np

from wsi_ips.geometry import Scale, Size
from wsi_ips.slides.base import RGB
from wsi_ips.tissue.artifacts import densities, find_bubbles, find_pen
from wsi_ips.tissue.fat import find_fat
from wsi_ips.tissue.ladder import Found, Method, distrust, rungs
from wsi_ips.tissue.mask import Seen, TissueMask
from wsi_ips.tissue.raster import Bools, box_share, closed, without_small
from wsi_ips.tissue.view import View, view_of

Lumen = Literal["keep", "drop"]
UNDER_PEN_UM = 500.0
"""How far around a pen mark one looks to tell whether it lies on tissue or on glass."""


def segment_tissue(
    thumbnail: RGB,
    *,
    mpp: Scale,
    px0_size: Size,
    smoothing_um: float,
    closing_um: float,
    min_saturation: float,
    min_area_um2: float,
    max_hole_um2: float,
    lumen: Lumen = "keep",
    method: Method = "auto",
) -> TissueMask:
    """Tell tissue from glass.

    Parameters
    ----------
    thumbnail
        uint8, shape (height, width, 3); the whole slide.
    mpp
        µm per thumbnail pixel.
    px0_size
        Size of level 0.
    smoothing_um
        Side of the mean filter on saturation and density.
    closing_um
        Gaps up to this width are closed.
    min_saturation
        Lowest threshold on saturation (0-1) of Otsu's rung; half of it is the lowest of the adaptive one.
    min_area_um2
        Smaller pieces are dropped.
    max_hole_um2
        Holes up to this area are filled, where ``lumen`` is ``keep``.
    lumen
        ``keep``: lumina, vessels and vacuoles count as tissue; ``drop``: they do not, whatever their size.
    method
        ``auto``: the first rung of :mod:`wsi_ips.tissue.ladder` that can be trusted; else only that rung.

    Returns
    -------
    TissueMask
        All False where there is no tissue.
    """
    step_um = math.sqrt(mpp.x * mpp.y)
    view, seen = _look(thumbnail, mpp, smoothing_um)
    smallest_px, hole_px = math.ceil(min_area_um2 / step_um**2), math.floor(max_hole_um2 / step_um**2) + 1
    fat = find_fat(view, step_um=step_um) if lumen == "keep" else np.zeros(seen.pen.shape, bool)
    passed: list[str] = []
    best = Found("bounded", np.zeros_like(fat), 1.0, "no threshold could be used")
    for found in rungs(view, min_saturation=min_saturation, method=method):
        if found.mask is None:
            passed.append(f"{found.rung}: {found.detail}")
            continue
        candidate = closed(found.mask, round(closing_um / step_um / 2))
        if np.count_nonzero(candidate) >= smallest_px:
            candidate |= fat
        mask = without_small(candidate, smallest_px)
        best = replace(found, mask=mask)
        reason = distrust(candidate, mask)
        if not reason:
            break
        passed.append(f"{found.rung} {reason}")
    mask = best.mask if best.mask is not None else np.zeros_like(fat)
    mask = _with_tissue_under(seen.pen, mask, step_um) if seen.pen.any() and mask.any() else mask
    mask = ~without_small(~mask, hole_px) if lumen == "keep" else mask
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


def see(tissue: TissueMask, thumbnail: RGB, *, mpp: Scale, smoothing_um: float) -> TissueMask:
    """A drawn mask with what lies on the slide besides, so that its tiles can be flagged.

    Parameters
    ----------
    tissue
        The mask; of the thumbnail's shape.
    thumbnail, mpp, smoothing_um
        As for :func:`segment_tissue`.
    """
    return replace(tissue, seen=_look(thumbnail, mpp, smoothing_um)[1])


def _look(thumbnail: RGB, mpp: Scale, smoothing_um: float) -> tuple[View, Seen]:
    """The thumbnail without its ink, and what was seen on the way."""
    step_um = math.sqrt(mpp.x * mpp.y)
    view = view_of(thumbnail, smoothing_px=max(1, 2 * round((smoothing_um / step_um - 1) / 2) + 1))
    od = densities(view.planes)
    bubble = find_bubbles(od, step_um=step_um)
    pen = find_pen(od, pixel_um2=mpp.x * mpp.y) & ~bubble
    seen = Seen(od, pen, bubble, view.glass.share, 1 - float(view.usable.mean()))
    return view.without(pen), seen


def _with_tissue_under(pen: Bools, mask: Bools, step_um: float) -> Bools:
    """A pen mark is on tissue where most of what is around it, and is no pen, is tissue."""
    side = 2 * round(UNDER_PEN_UM / step_um / 2) + 1
    on_tissue = 2 * box_share(mask & ~pen, side) > box_share(~pen, side)
    return np.asarray(mask | (pen & on_tissue))
