"""Segmentation methods: a sequence of ways to separate tissue from glass; the first trusted one counts. Pure.

1. ``otsu``: Otsu's threshold on saturation, if it lies in the range of tissue thresholds.
2. ``adaptive``: saturation above the noise of this slide's own glass. For pale slides and little tissue.
3. ``stain``: density above the noise of the glass, coloured or not. For grey stains and haematoxylin alone.
4. ``bounded``: Otsu's threshold, moved into its bounds. The last resort, also for a picture without glass.

A method ("rung" in stored tables) is not trusted where it finds nothing, almost everything, or mostly crumbs. Fat, a
net of walls too thin for any threshold on a pixel, is found separately and added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from wsi_ips.registry import Entry, Registry
from wsi_ips.slides.base import RGB
from wsi_ips.tissue.filters import Bools, Bytes, box_mean, box_share, closed, dilated, extremes, local_minimum

DARK = 40  # pixels darker than this in all channels (0-255) are not tissue: ink, coverslip edge, scan gaps
# Pixels of at least this in all channels are paper white, which glass never is: not scanned, or stitched in
SCAN_GAP = 254
NEAR_GLASS = 20  # grey levels around the most frequent bright grey within which a pixel may be glass
DIMMEST_GLASS = 150
LARGEST_TINT = 0.2  # a bright colour of higher saturation is not glass: the picture is full of tissue
CORRECTED_TINT = 0.02  # glass of a lower saturation counts as white: dividing by it would only change rounding
LEAST_GLASS = 0.01  # least share of glass in the picture from which its noise can be measured
SOME = (slice(None, None, 3), slice(None, None, 3))  # the glass is measured on a ninth of the pixels, which is enough
DEVIATIONS = 6.0  # robust standard deviations of the glass above which a pixel is not noise

Rung = Literal["otsu", "adaptive", "stain", "bounded"]
LADDER: tuple[Rung, ...] = get_args(Rung)

_OURS = "wsi_ips.tissue.segmentation:segment_tissue"
# Those of other packages, and `model`, name a function of a thumbnail, its µm/px and `tissue.model` that returns how
# likely each pixel is tissue: float32 (height, width), 0 to 1.
TISSUE_METHODS: Registry[Entry] = Registry(
    "tissue method",
    [
        Entry("auto", _OURS, "the first of `otsu`, `adaptive` and `stain` that can be trusted"),
        Entry("otsu", _OURS, "threshold on saturation"),
        Entry("adaptive", _OURS, "above the noise of the slide's own glass"),
        Entry("stain", _OURS, "threshold on density"),
        Entry("all", _OURS, "everything counts as tissue"),
        Entry(
            "model",
            "wsi_ips.model.tissue_network:tissue_share",
            "your own network, of the file `tissue.model`",
            keys=("tissue.model",),
        ),
    ],
    group="wsi_ips.tissue_methods",
)

MOST_SATURATION = 0.2  # with little glass, Otsu can only split the tissue, and splits it higher
MOST_DENSITY = 0.25
LEAST_DENSITY = 0.05  # dust and shadows take away less light than this
EVERYTHING = 0.97  # a larger share of the picture counts as tissue only after all methods have been tried
# Share of the median saturation above the glass from which a pixel is tissue; less is smeared by compression
OF_TISSUE = 0.25
LEFT_OUT = 0.25  # Otsu is not trusted where it leaves out more of the adaptive result: pale tissue beside dark
CRUMBS = 0.6  # a method that loses a larger share of its area as small pieces has found noise

LUMEN_UM = 80.0  # a fat wall stands out against the lightest place within half this width: the inside of the next cell
MESH_UM = 64.0  # fat cells up to this width are closed; adipocytes have 50 to 100 µm, and walls take part of it
LEAST_STEP = 3  # least grey levels (of 255) by which a wall stands out; more where the glass is noisier
COLOURED = 0.6  # walls are coloured: least share of the saturation above which a pixel is not noise of the glass
WINDOW_UM = 160.0
LEAST_WALLS = 0.2  # least share of a window that walls take up in fat; dust and single fibres take up less


@dataclass(frozen=True)
class Glass:
    """Look of the empty glass on a thumbnail."""

    share: float  # share of the picture that looks like it; 0 where no glass was found
    saturation: float  # 0-1; with more, a pixel is not noise of the glass
    density: float  # 0-1, likewise
    density_noise: float  # variation of density (0-1) by noise alone


@dataclass(frozen=True)
class View:
    """A thumbnail, prepared once for all methods and for the flags."""

    planes: tuple[Bytes, Bytes, Bytes]  # red, green, blue, relative to the glass where it is tinted; (height, width)
    saturation: Bytes  # of HSV, smoothed; uint8, 255 is 1
    density: Bytes  # share of the glass's light that is missing, mean of the channels, smoothed; uint8, 255 is 1
    white: tuple[int, int, int]  # colour of the glass in ``planes``
    usable: Bools  # False on pixels too dark for tissue
    glass: Glass  # look of the empty glass

    @cached_property
    def histogram(self) -> NDArray[np.int64]:
        """Number of usable pixels of each saturation 0 to 255."""
        return np.bincount(self.saturation.ravel(), self.usable.ravel(), minlength=256).astype(np.int64)


def view_of(thumbnail: RGB, *, smoothing_px: int) -> View:
    """Prepare a thumbnail, uint8 of shape (height, width, 3); ``smoothing_px`` is the odd side of a mean filter."""
    red, green, blue = (np.ascontiguousarray(thumbnail[..., channel]) for channel in range(3))
    planes = red, green, blue
    low, high = extremes(planes)
    usable = high > DARK
    saturation = _saturation(low, high)
    share, bright, colour = _brightest([plane[SOME] for plane in planes], low[SOME])
    tint = 1 - min(colour) / max(colour)
    seen = bright is not None and tint <= LARGEST_TINT
    if not seen:
        colour = (255, 255, 255)
    elif tint > CORRECTED_TINT:
        planes, colour = _relative(planes, colour), (255, 255, 255)
        low, high = extremes(planes)
        saturation = _saturation(low, high)
    saturation = box_mean(saturation, smoothing_px)
    density = box_mean(_density(planes, max(colour)), smoothing_px)
    if not seen or bright is None:
        return View(planes, saturation, density, colour, usable, Glass(0.0, 1.0, 1.0, 1.0))
    level, noise = _noise_limit(density[SOME][bright])
    glass = Glass(share, _noise_limit(saturation[SOME][bright])[0], level, noise)
    return View(planes, saturation, density, colour, usable, glass)


def _saturation(low: Bytes, high: Bytes) -> Bytes:
    spread = (high - low).astype(np.float32)
    spread *= 255
    spread /= np.maximum(high, 1)
    return np.asarray(spread + 0.5, np.uint8)


def _density(planes: tuple[Bytes, Bytes, Bytes], white: int) -> Bytes:
    total = planes[0].astype(np.uint16)
    total += planes[1]
    total += planes[2]
    missing = np.clip(1 - np.arange(766) / (3 * white), 0, 1)
    return np.asarray(np.rint(missing * 255), np.uint8)[total]


def _brightest(planes: Sequence[Bytes], low: Bytes) -> tuple[float, Bools | None, tuple[int, int, int]]:
    """Return share, mask and colour of the pixels around the most frequent bright grey; None where too few."""
    every = np.bincount(low.ravel(), minlength=256)[DIMMEST_GLASS:]
    counts, white = every.copy(), (255, 255, 255)
    counts[SCAN_GAP - DIMMEST_GLASS :] = 0
    if counts.sum() < LEAST_GLASS * low.size:
        counts = every  # a synthetic or cut-out white background
        if counts.sum() < LEAST_GLASS * low.size:
            return 0.0, None, white
    smooth = np.convolve(counts, np.ones(5), mode="same")
    # Take the brightest peak that is not far below the highest: glass is brighter than pale tissue.
    peak = DIMMEST_GLASS + int(np.flatnonzero(smooth >= 0.25 * smooth.max())[-1])
    bright = (low >= peak - NEAR_GLASS) & (low <= peak + NEAR_GLASS)
    if peak + 2 < SCAN_GAP:
        bright &= low < SCAN_GAP
    if bright.mean() < LEAST_GLASS:
        return 0.0, None, white
    red, green, blue = (int(np.median(plane[bright])) for plane in planes)
    return float(bright.mean()), bright, (red, green, blue)


def _relative(planes: tuple[Bytes, Bytes, Bytes], colour: tuple[int, int, int]) -> tuple[Bytes, Bytes, Bytes]:
    levels = np.arange(256)
    red, green, blue = (
        np.asarray(np.clip(np.rint(levels * 255 / value), 0, 255), np.uint8)[plane]
        for plane, value in zip(planes, colour, strict=True)
    )
    return red, green, blue


def _noise_limit(values: NDArray[np.uint8]) -> tuple[float, float]:
    """Return median plus six robust deviations (of the lower, empty half), and the deviations alone, 0-1."""
    median, lower = np.percentile(values, (50, 16))
    noise = DEVIATIONS * max(0.5, median - lower)
    return float((median + noise) / 255), float(noise / 255)


@dataclass(frozen=True)
class Found:
    """Result of one method."""

    rung: str  # which method
    mask: Bools | None  # pixels found, uncleaned; None where the method cannot be used
    threshold: float  # saturation or density (0-1) above which a pixel counts
    detail: str  # the rule in words, or why the method cannot be used


def attempts(view: View, *, min_saturation: float, method: str) -> Iterator[Found]:
    """Yield the result of each method in order; only of the named one where ``method`` is not ``auto``."""
    for rung in LADDER:
        if method in ("auto", rung):
            yield RUNGS[rung](view, min_saturation)


def distrust(candidate: Bools, cleaned: Bools) -> str:
    """Return why a mask cannot be trusted, given also without its small pieces; empty where it can."""
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
            detail = f"{threshold:.3f} leaves out {lost:.0%} of what rises above the glass"
            return Found("otsu", None, threshold, detail)
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
    return _saturated("bounded", view, max(min_saturation, min(_otsu_threshold(view), MOST_SATURATION)))


RUNGS: dict[Rung, Callable[[View, float], Found]]
RUNGS = {"otsu": _otsu, "adaptive": _adaptive, "stain": _stain, "bounded": _bounded}


def _saturated(rung: Rung, view: View, threshold: float) -> Found:
    mask = (view.saturation > round(threshold * 255)) & view.usable
    return Found(rung, mask, threshold, f"saturation > {threshold:.3f}")


def _adaptive_threshold(view: View, min_saturation: float) -> float:
    """Return a threshold above the noise of the glass, and at least a share of the median above it."""
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


def find_fat(view: View, *, step_um: float) -> Bools:
    """Find areas full of thin walls around empty cells; nothing where no glass was found."""
    if view.glass.share == 0:
        return np.zeros(view.density.shape, bool)
    radius = max(1, round(LUMEN_UM / step_um / 2))
    noise = max(LEAST_STEP, math.ceil(view.glass.density_noise * 255))
    walls = (view.density > local_minimum(view.density, radius) + np.uint8(noise)) & view.usable
    # Stitched fields differ in density too, but not in colour.
    walls &= view.saturation > COLOURED * view.glass.saturation * 255
    side = 2 * round(WINDOW_UM / step_um / 2) + 1
    dense = box_share(walls, side) >= LEAST_WALLS
    mesh = closed(walls, round(MESH_UM / step_um / 2)) & dilated(dense, side // 4)
    return ~dilated(~mesh, 1)  # smoothing widened the outermost walls by a pixel
