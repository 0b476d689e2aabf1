"""The ladder: ways to tell tissue from glass, the first that can be trusted is taken. Pure.

1. ``otsu``: Otsu's threshold on saturation, where it lies where thresholds of tissue lie.
2. ``adaptive``: what rises above the noise of this slide's own glass in saturation. Pale slides, little tissue.
3. ``stain``: what rises above the noise of the glass in density, coloured or not. Grey stains, haematoxylin alone.
4. ``bounded``: Otsu's threshold, moved into its bounds. The last resort; a picture without glass ends here.

A rung is not trusted where it finds nothing, almost everything, or mostly crumbs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from skimage.filters import threshold_otsu

from wsi_ips.tissue.raster import Bools
from wsi_ips.tissue.view import View

Rung = Literal["otsu", "adaptive", "stain", "bounded"]
Method = Literal["auto", "otsu", "adaptive", "stain"]
LADDER: tuple[Rung, ...] = get_args(Rung)

MOST_SATURATION = 0.2
"""A higher threshold splits tissue from tissue: where there is little glass Otsu has nothing else to split."""
MOST_DENSITY = 0.25
LEAST_DENSITY = 0.05
"""Less light is missing where there is dust or a shadow."""
EVERYTHING = 0.97
"""A larger share of the picture is not believed to be tissue before every rung has said so."""
OF_TISSUE = 0.25
"""Share of the usual saturation of what rises above the glass from which on a pixel is tissue: less is what
compression smears over the edge."""
LEFT_OUT = 0.25
"""Otsu is not trusted where it leaves out a larger share of what the adaptive rung finds: pale tissue beside dark."""
CRUMBS = 0.6
"""A rung that loses more of its area to the smallest allowed piece has found noise."""


@dataclass(frozen=True)
class Found:
    """What a rung found.

    Attributes
    ----------
    rung
        Which one.
    mask
        Its pixels, uncleaned; None where it cannot be used.
    threshold
        Saturation or density (0-1) above which a pixel counted.
    detail
        The rule in words, or why it cannot be used.
    """

    rung: Rung
    mask: Bools | None
    threshold: float
    detail: str


def rungs(view: View, *, min_saturation: float, method: Method) -> Iterator[Found]:
    """What each rung finds, in order; only the one that is asked for where ``method`` is not ``auto``."""
    for rung in LADDER:
        if method in ("auto", rung):
            yield RUNGS[rung](view, min_saturation)


def distrust(candidate: Bools, cleaned: Bools) -> str:
    """Why a mask cannot be trusted, empty where it can.

    Parameters
    ----------
    candidate, cleaned
        Before and after small pieces were dropped.
    """
    before, after = float(candidate.mean()), float(cleaned.mean())
    if after == 0:
        return "finds nothing"
    if after > EVERYTHING:
        return f"finds {after:.0%} of the picture"
    if after < (1 - CRUMBS) * before:
        return f"finds {1 - after / before:.0%} crumbs"
    return ""


def _otsu(view: View, min_saturation: float) -> Found:
    threshold = _otsu_threshold(view)
    if not min_saturation <= threshold <= MOST_SATURATION:
        side = "below tissue.min_saturation" if threshold < min_saturation else f"above {MOST_SATURATION:g}"
        return Found("otsu", None, threshold, f"{threshold:.3f} is {side}")
    if view.glass.share:
        counts = view.histogram
        above = counts[round(_adaptive_threshold(view, min_saturation) * 255) + 1 :].sum()
        lost = 1 - counts[round(threshold * 255) + 1 :].sum() / max(1, above)
        if lost > LEFT_OUT:
            return Found(
                "otsu", None, threshold, f"{threshold:.3f} leaves out {lost:.0%} of what rises above the glass"
            )
    return _saturated("otsu", view, threshold)


def _adaptive(view: View, min_saturation: float) -> Found:
    if view.glass.share == 0:
        return Found("adaptive", None, 1.0, "sees no glass")
    return _saturated("adaptive", view, _adaptive_threshold(view, min_saturation))


def _stain(view: View, _: float) -> Found:
    if view.glass.share == 0:
        return Found("stain", None, 1.0, "sees no glass")
    threshold = min(max(view.glass.density, LEAST_DENSITY), MOST_DENSITY)
    mask = (view.density > round(threshold * 255)) & view.usable
    return Found("stain", mask, threshold, f"density > {threshold:.3f}")


def _bounded(view: View, min_saturation: float) -> Found:
    otsu = _otsu_threshold(view)
    return _saturated("bounded", view, max(min_saturation, min(otsu, MOST_SATURATION)))


RUNGS: dict[Rung, Callable[[View, float], Found]] = {
    "otsu": _otsu,
    "adaptive": _adaptive,
    "stain": _stain,
    "bounded": _bounded,
}


def _saturated(rung: Rung, view: View, threshold: float) -> Found:
    mask = (view.saturation > round(threshold * 255)) & view.usable
    return Found(rung, mask, threshold, f"saturation > {threshold:.3f}")


def _adaptive_threshold(view: View, min_saturation: float) -> float:
    """Above the noise of the glass, and no less than a share of what is usual above it."""
    noise = max(view.glass.saturation, min_saturation / 2)
    counts = view.histogram.copy()
    counts[: round(noise * 255) + 1] = 0
    total = counts.cumsum()
    usual = float(np.searchsorted(total, total[-1] / 2)) / 255 if total[-1] else 0.0
    return min(max(noise, OF_TISSUE * usual), MOST_SATURATION)


def _otsu_threshold(view: View) -> float:
    counts = view.histogram
    if np.count_nonzero(counts) < 2:
        return 1.0
    lower = int(threshold_otsu(hist=(counts, np.arange(256))))
    upper = lower + 1 + int(np.flatnonzero(counts[lower + 1 :])[0])
    return (lower + upper - 1) / 2 / 255  # the middle of an empty stretch, where there is one
