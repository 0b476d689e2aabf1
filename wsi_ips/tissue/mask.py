"""A tissue mask and the share of tissue in any box: pure, by integral image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wsi_ips.geometry import Scale


class AreaSums:
    """Sums of a raster over boxes, parts of pixels by their area.

    Parameters
    ----------
    values
        bool or whole numbers, shape (height, width); covers all of level 0.
    px0_per_px
        Level-0 pixels per pixel, per axis.
    """

    def __init__(self, values: NDArray[np.bool_] | NDArray[np.integer], px0_per_px: Scale) -> None:
        self._scale = px0_per_px
        height, width = values.shape
        wide = np.int32 if values.dtype == bool else np.int64
        self._integral = np.zeros((height + 1, width + 1), wide)
        np.cumsum(values, axis=0, dtype=wide, out=self._integral[1:, 1:])
        np.cumsum(self._integral[1:, 1:], axis=1, out=self._integral[1:, 1:])

    def mean(self, boxes_px0: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over each box x, y, width, height in level-0 pixels, shape (N, 4); what lies outside counts as 0."""
        x, y, width, height = np.asarray(boxes_px0, np.float64).T
        left, right = x / self._scale.x, (x + width) / self._scale.x
        top, bottom = y / self._scale.y, (y + height) / self._scale.y
        inside = self._area(right, bottom) - self._area(left, bottom) - self._area(right, top)
        inside += self._area(left, top)
        return np.asarray(inside / ((right - left) * (bottom - top)))

    def _area(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum left of x and above y, both in pixels.

        The integral image is exact at corners of pixels; inside a pixel it is bilinear in (x, y), because
        the raster is constant there. So interpolation is exact everywhere.
        """
        height, width = (side - 1 for side in self._integral.shape)
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        column = np.minimum(x.astype(np.intp), width - 1)
        row = np.minimum(y.astype(np.intp), height - 1)
        u, v = x - column, y - row
        upper = self._integral[row, column] * (1 - u) + self._integral[row, column + 1] * u
        lower = self._integral[row + 1, column] * (1 - u) + self._integral[row + 1, column + 1] * u
        return np.asarray(upper * (1 - v) + lower * v)


@dataclass(frozen=True)
class Seen:
    """What lay on a thumbnail besides tissue.

    Attributes
    ----------
    od
        Optical density of red, green and blue relative to the glass, in 1/100; uint8, each (height, width).
    pen, bubble
        Ink, and air under the coverslip; bool, each (height, width).
    glass_share
        Share of the picture that looks like glass.
    black_share
        Share of the picture that is too dark for tissue and no pen.
    """

    od: tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
    pen: NDArray[np.bool_]
    bubble: NDArray[np.bool_]
    glass_share: float
    black_share: float


@dataclass(frozen=True)
class TissueMask:
    """Where tissue is on a slide.

    Attributes
    ----------
    mask
        bool, shape (height, width), True on tissue; covers all of level 0.
    px0_per_mask_px
        Level-0 pixels per mask pixel, per axis.
    threshold
        Saturation (0-1) above which a pixel counted as stained.
    method
        How it was found, for people.
    rung
        Which rung of the ladder found it; ``drawn`` where a person did.
    passed
        Rungs that were tried before and could not be trusted, with the reason.
    seen
        What the segmentation saw on the way; None where it was not asked.
    """

    mask: NDArray[np.bool_]
    px0_per_mask_px: Scale
    threshold: float
    method: str
    rung: str = "drawn"
    passed: tuple[str, ...] = ()
    seen: Seen | None = None

    def fraction(self, boxes_px0: NDArray[np.float64]) -> NDArray[np.float32]:
        """Share of tissue in each box; parts of mask pixels count by their area.

        Parameters
        ----------
        boxes_px0
            Boxes x, y, width, height in level-0 pixels, shape (N, 4); width and height above 0.

        Returns
        -------
        numpy.ndarray
            float32, shape (N,), 0-1. What lies outside the mask counts as glass.
        """
        return np.asarray(np.clip(self._sums.mean(boxes_px0), 0, 1), np.float32)

    def area_um2(self, mpp: Scale) -> float:
        """Tissue area in µm², from the scale of level 0."""
        pixel_um2 = self.px0_per_mask_px.x * mpp.x * self.px0_per_mask_px.y * mpp.y
        return float(np.count_nonzero(self.mask) * pixel_um2)

    @cached_property
    def _sums(self) -> AreaSums:
        return AreaSums(self.mask, self.px0_per_mask_px)
