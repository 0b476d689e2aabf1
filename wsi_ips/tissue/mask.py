"""A tissue mask and the share of tissue in any box: pure, by integral image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wsi_ips.geometry import Scale


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
    """

    mask: NDArray[np.bool_]
    px0_per_mask_px: Scale
    threshold: float
    method: str

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
        x, y, width, height = np.asarray(boxes_px0, np.float64).T
        left, right = x / self.px0_per_mask_px.x, (x + width) / self.px0_per_mask_px.x
        top, bottom = y / self.px0_per_mask_px.y, (y + height) / self.px0_per_mask_px.y
        inside = self._area(right, bottom) - self._area(left, bottom) - self._area(right, top)
        inside += self._area(left, top)
        return np.asarray(np.clip(inside / ((right - left) * (bottom - top)), 0, 1), np.float32)

    def area_um2(self, mpp: Scale) -> float:
        """Tissue area in µm², from the scale of level 0."""
        pixel_um2 = self.px0_per_mask_px.x * mpp.x * self.px0_per_mask_px.y * mpp.y
        return float(np.count_nonzero(self.mask) * pixel_um2)

    @cached_property
    def _integral(self) -> NDArray[np.float64]:
        height, width = self.mask.shape
        integral = np.zeros((height + 1, width + 1))
        np.cumsum(np.cumsum(self.mask, axis=0), axis=1, out=integral[1:, 1:])
        return integral

    def _area(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tissue area left of x and above y in mask pixels.

        The integral image is exact at corners of pixels; inside a pixel it is bilinear in (x, y), because
        the mask is constant there. So interpolation is exact everywhere.
        """
        height, width = self.mask.shape
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        column = np.minimum(x.astype(np.intp), width - 1)
        row = np.minimum(y.astype(np.intp), height - 1)
        u, v = x - column, y - row
        upper = self._integral[row, column] * (1 - u) + self._integral[row, column + 1] * u
        lower = self._integral[row + 1, column] * (1 - u) + self._integral[row + 1, column + 1] * u
        return np.asarray(upper * (1 - v) + lower * v)
