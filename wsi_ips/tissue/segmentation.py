"""Tissue from a thumbnail: Otsu's threshold on saturation, cleaned by sizes in µm. Pure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import filters, morphology

from wsi_ips.geometry import Scale, Size
from wsi_ips.slides.base import RGB
from wsi_ips.tissue.mask import TissueMask

MOST_SATURATION = 0.2
"""A higher threshold splits tissue from tissue: where there is little glass Otsu has nothing else to split."""

DARK = 40
"""Pixels darker than this in all channels (0-255) are no tissue: ink, coverslip edge, scan gaps."""


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
        Diameter of the median filter on saturation.
    closing_um
        Gaps up to this width are closed.
    min_saturation
        Lowest threshold: on a slide with nothing but glass Otsu would split noise.
    min_area_um2
        Smaller pieces are dropped.
    max_hole_um2
        Holes up to this area are filled.

    Returns
    -------
    TissueMask
        All False where there is no tissue.
    """
    step_um = math.sqrt(mpp.x * mpp.y)
    saturation = ndimage.median_filter(_saturation(thumbnail), size=max(1, round(smoothing_um / step_um)))
    otsu = float(filters.threshold_otsu(saturation)) if np.ptp(saturation) > 0 else 1.0
    threshold = max(min_saturation, min(otsu, MOST_SATURATION))
    mask = (saturation > threshold) & (thumbnail.max(axis=2) > DARK)
    radius = round(closing_um / step_um / 2)
    if radius:
        padded = np.pad(mask, radius)
        mask = morphology.closing(padded, morphology.disk(radius))[radius:-radius, radius:-radius]
    pixel_um2 = mpp.x * mpp.y
    mask = _without_small(mask, math.ceil(min_area_um2 / pixel_um2))
    mask = ~_without_small(~mask, math.floor(max_hole_um2 / pixel_um2) + 1)
    height, width = mask.shape
    rung = "Otsu" if threshold == otsu else "floor" if threshold == min_saturation else "ceiling"
    return TissueMask(
        mask=mask,
        px0_per_mask_px=Scale(px0_size.width / width, px0_size.height / height),
        threshold=threshold,
        method=f"saturation > {threshold:.3f} ({rung}) at {step_um:.3g} µm/px",
    )


def _saturation(rgb: RGB) -> NDArray[np.float32]:
    """Saturation of HSV, 0-1, float32."""
    high = rgb.max(axis=2).astype(np.float32)
    low = rgb.min(axis=2)
    return np.asarray((high - low) / np.maximum(high, 1), np.float32)


def _without_small(mask: NDArray[np.bool_], smallest_px: int) -> NDArray[np.bool_]:
    """Drop 8-connected pieces of fewer than ``smallest_px`` pixels."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count == 0 or smallest_px <= 1:
        return mask
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= smallest_px
    keep[0] = False
    return np.asarray(keep[labels])
