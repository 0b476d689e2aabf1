"""Annotated regions as a mask: pure geometry."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry
from skimage.draw import polygon2mask

from wsi_ips.geometry import Size


def region_mask(region: BaseGeometry, size_px0: Size, *, downsample: float) -> NDArray[np.bool_]:
    """Whether the middle of each pixel of a coarse grid lies in a region.

    Parameters
    ----------
    region
        Annotated tumour, level-0 pixels.
    size_px0
        Size of level 0.
    downsample
        Level-0 pixels per pixel of the mask.

    Returns
    -------
    numpy.ndarray
        bool, shape (height, width) of level 0 over ``downsample``, rounded up.
    """
    rows, columns = (int(np.ceil(side / downsample)) for side in (size_px0.height, size_px0.width))
    mask = np.zeros((rows, columns), bool)
    polygons = [
        part for part in shapely.get_parts(region).tolist() if isinstance(part, shapely.Polygon) and part.area > 0
    ]
    for part in polygons:  # they do not overlap: what is a hole of one is outside of all, or an island of its own
        left, top, right, bottom = np.array(part.bounds) / downsample
        x, y = max(0, int(left)), max(0, int(top))
        box = (slice(y, min(rows, int(bottom) + 1)), slice(x, min(columns, int(right) + 1)))
        shape = mask[box].shape
        if 0 in shape:
            continue
        inside = _ring(part.exterior, shape, x, y, downsample)
        for hole in part.interiors:
            inside &= ~_ring(hole, shape, x, y, downsample)
        mask[box] |= inside
    return mask


def _ring(ring: shapely.LinearRing, shape: tuple[int, ...], x: int, y: int, downsample: float) -> NDArray[np.bool_]:
    """Inside of a ring in a window of the mask that begins at column x, row y."""
    points = shapely.get_coordinates(ring) / downsample - (x, y) - 0.5  # pixel middles become whole numbers
    return np.asarray(polygon2mask(shape, points[:, ::-1]), bool)
