"""A tissue mask as polygons, and polygons as a mask. Pure."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry
from skimage.draw import polygon as polygon_pixels
from skimage.measure import find_contours

from wsi_ips.annotations import polygons_of
from wsi_ips.geometry import Box, Scale, Size
from wsi_ips.tissue.mask import TissueMask

SIMPLIFIED_PX = 0.25
"""Mask pixels by which a simplified outline may leave the true one."""
SUPERSAMPLED = 4
BAND_PX = 64


def outline_of(tissue: TissueMask) -> BaseGeometry:
    """Outline of a mask in level-0 pixels, simplified to a quarter of a mask pixel; may be empty."""
    padded = np.pad(tissue.mask, 1).astype(np.float32)
    rings = [ring for ring in find_contours(padded, 0.5) if len(ring) >= 4]
    # Row and column of pixel centres of the padded mask; its first pixel is one outside.
    scale = np.array(tissue.px0_per_mask_px)
    loops = [shapely.Polygon((ring[:, ::-1] - 0.5) * scale) for ring in rings]
    if not loops:
        return shapely.Polygon()
    # Nested rings are solid, hole, solid ...: the symmetric difference is what lies in an odd number of them.
    region = _even_odd(loops)
    tolerance = SIMPLIFIED_PX * min(scale)
    return shapely.make_valid(shapely.simplify(region, tolerance))


def mask_of(region: BaseGeometry, *, px0_size: Size, mask_size: Size, source: str) -> TissueMask:
    """Rasterise a region that somebody drew.

    Parameters
    ----------
    region
        Level-0 pixels.
    px0_size, mask_size
        Size of level 0, and of the mask in its pixels.
    source
        Where the region comes from, for people.

    Returns
    -------
    TissueMask
        A pixel is tissue where at least half of it lies in the region.
    """
    scale = Scale(px0_size.width / mask_size.width, px0_size.height / mask_size.height)
    mask = covered(region, Box(0, 0, *mask_size), scale) >= 0.5
    return TissueMask(mask=mask, px0_per_mask_px=scale, threshold=0.0, method=f"drawn: {source}", rung="drawn")


def covered(region: BaseGeometry, window: Box, px0_per_px: Scale) -> NDArray[np.float32]:
    """Share of each pixel of a window of a raster that lies in a region, to a 16th.

    Parameters
    ----------
    region
        Level-0 pixels.
    window
        Pixels of the raster, which begins at the corner of the slide.
    px0_per_px
        Level-0 pixels per pixel of the raster.

    Returns
    -------
    numpy.ndarray
        float32, shape (height, width) of the window.
    """
    out = np.empty((window.height, window.width), np.float32)
    scale = np.array(px0_per_px) / SUPERSAMPLED
    corner = np.array([window.x, window.y]) * SUPERSAMPLED
    rings = [
        (np.asarray(ring.coords)[:, :2] / scale - corner - 0.5, value)  # from the middle of a pixel
        for polygon in sorted(polygons_of(region), key=lambda p: -p.area)
        for ring, value in ((polygon.exterior, 1), *((hole, 0) for hole in polygon.interiors))
    ]
    for top in range(0, window.height, BAND_PX):
        height = min(BAND_PX, window.height - top)
        fine = np.zeros((height * SUPERSAMPLED, window.width * SUPERSAMPLED), np.uint8)
        for points, value in rings:
            x, y = points[:, 0], points[:, 1] - top * SUPERSAMPLED
            if y.min() < fine.shape[0] and y.max() >= 0:
                fine[polygon_pixels(y, x, fine.shape)] = value
        parts = fine.reshape(height, SUPERSAMPLED, window.width, SUPERSAMPLED)
        out[top : top + height] = parts.mean(axis=(1, 3), dtype=np.float32)
    return out


def _even_odd(loops: list[shapely.Polygon]) -> BaseGeometry:
    """What lies in an odd number of rings that do not cross; rings inside holes are handled by depth."""
    order = sorted(loops, key=lambda loop: -loop.area)
    tree = shapely.STRtree(order)
    points = shapely.points([loop.exterior.coords[0] for loop in order])
    inner, outer = tree.query(points, predicate="within")
    depth = np.bincount(inner[inner != outer], minlength=len(order))
    region: BaseGeometry = shapely.Polygon()
    for level in range(int(depth.max()) + 1):
        rings = shapely.union_all([loop for loop, at in zip(order, depth, strict=True) if at == level])
        region = shapely.difference(region, rings) if level % 2 else shapely.union(region, rings)
    return region
