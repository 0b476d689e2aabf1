"""A thumbnail as the segmentation methods see it: saturation, density, and the glass. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wsi_ips.slides.base import RGB
from wsi_ips.tissue.filters import Bools, Bytes, box_mean

DARK = 40  # pixels darker than this in all channels (0-255) are not tissue: ink, coverslip edge, scan gaps
# Pixels of at least this in all channels are paper white, which glass never is: not scanned, or stitched in
SCAN_GAP = 254
NEAR_GLASS = 20  # grey levels around the most frequent bright grey within which a pixel may be glass
DIMMEST_GLASS = 150
LARGEST_TINT = 0.2  # A bright colour of higher saturation is not glass: the picture is full of tissue
# Glass of a lower saturation counts as white, because dividing by it would change nothing but rounding
CORRECTED_TINT = 0.02
LEAST_GLASS = 0.01  # least share of glass in the picture from which its noise can be measured
SOME = (slice(None, None, 3), slice(None, None, 3))  # the glass is measured on a ninth of the pixels, which is enough
DEVIATIONS = 6.0  # robust standard deviations of the glass above which a pixel is not noise


@dataclass(frozen=True)
class Glass:
    """Look of the empty glass on a thumbnail."""

    colour: tuple[int, int, int]  # RGB, 0-255; white where no glass was found
    share: float  # share of the picture that looks like it; 0 where no glass was found
    # above these values (0-1) a pixel is not noise of the glass
    saturation: float
    density: float
    density_noise: float  # variation of density (0-1) by noise alone


@dataclass(frozen=True)
class View:
    """A thumbnail, prepared once for all methods and for the flags."""

    # red, green and blue, relative to the glass where the glass is tinted; uint8, each (height, width)
    planes: tuple[Bytes, Bytes, Bytes]
    saturation: Bytes  # of HSV, smoothed; uint8, 255 is 1
    density: Bytes  # share of the glass's light that is missing, mean of the channels, smoothed; uint8, 255 is 1
    usable: Bools  # false on pixels too dark for tissue
    glass: Glass  # look of the empty glass

    @cached_property
    def histogram(self) -> NDArray[np.int64]:
        """Number of usable pixels of each saturation 0 to 255."""
        return np.bincount(self.saturation.ravel(), self.usable.ravel(), minlength=256).astype(np.int64)

    def without(self, ink: Bools) -> View:
        """Return the view with ink marked unusable."""
        return replace(self, usable=self.usable & ~ink) if ink.any() else self


def view_of(thumbnail: RGB, *, smoothing_px: int) -> View:
    """Prepare a thumbnail, uint8 of shape (height, width, 3); ``smoothing_px`` is the odd side of a mean filter."""
    planes = _planes(thumbnail)
    low, high = _extremes(planes)
    usable = high > DARK
    saturation = _saturation(low, high)
    share, bright, colour = _brightest([plane[SOME] for plane in planes], low[SOME])
    tint = 1 - min(colour) / max(colour)
    seen = bright is not None and tint <= LARGEST_TINT
    white = max(colour)
    if seen and tint > CORRECTED_TINT:
        planes, white = _relative(planes, colour), 255
        low, high = _extremes(planes)
        saturation = _saturation(low, high)
    saturation = box_mean(saturation, smoothing_px)
    density = box_mean(_density(planes, white if seen else 255), smoothing_px)
    if not seen or bright is None:
        return View(planes, saturation, density, usable, Glass((255, 255, 255), 0.0, 1.0, 1.0, 1.0))
    level, noise = _noise_limit(density[SOME][bright])
    glass = Glass(colour, share, _noise_limit(saturation[SOME][bright])[0], level, noise)
    return View(planes, saturation, density, usable, glass)


def _planes(thumbnail: RGB) -> tuple[Bytes, Bytes, Bytes]:
    red, green, blue = (np.ascontiguousarray(thumbnail[..., channel]) for channel in range(3))
    return red, green, blue


def _extremes(planes: tuple[Bytes, Bytes, Bytes]) -> tuple[Bytes, Bytes]:
    red, green, blue = planes
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


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
