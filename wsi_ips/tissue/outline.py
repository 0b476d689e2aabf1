"""A tissue mask as polygons, and polygons as a mask. Pure."""

from __future__ import annotations

import math

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from shapely.geometry.base import BaseGeometry
from skimage.measure import find_contours

from wsi_ips.geometry import Scale, Size
from wsi_ips.tissue.mask import TissueMask

SIMPLIFIED_PX = 0.5
"""Mask pixels by which a simplified outline may leave the true one."""
SUPERSAMPLED = 4


def outline_of(tissue: TissueMask) -> BaseGeometry:
    """Outline of a mask in level-0 pixels, simplified to half a mask pixel; may be empty."""
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


def mask_of(region: BaseGeometry, *, px0_size: Size, mpp: Scale, mask_mpp: float, source: str) -> TissueMask:
    """Rasterise a region that somebody drew.

    Parameters
    ----------
    region
        Level-0 pixels.
    px0_size
        Size of level 0.
    mpp
        µm per level-0 pixel.
    mask_mpp
        µm per mask pixel, about.
    source
        Where the region comes from, for people.

    Returns
    -------
    TissueMask
        A pixel is tissue where at least half of it lies in the region.
    """
    size = Size(
        max(1, math.ceil(px0_size.width * mpp.x / mask_mpp)), max(1, math.ceil(px0_size.height * mpp.y / mask_mpp))
    )
    scale = Scale(px0_size.width / size.width, px0_size.height / size.height)
    return TissueMask(
        mask=covered(region, size, scale) >= 0.5,
        px0_per_mask_px=scale,
        threshold=0.0,
        method=f"drawn: {source}",
        rung="drawn",
    )


def covered(region: BaseGeometry, size: Size, px0_per_px: Scale) -> NDArray[np.float32]:
    """Share of each pixel of a raster from the slide's corner that lies in a region, to a 16th; (height, width)."""
    image = Image.new("L", (size.width * SUPERSAMPLED, size.height * SUPERSAMPLED))
    draw = ImageDraw.Draw(image)
    scale = np.array(px0_per_px) / SUPERSAMPLED
    for polygon in sorted(_polygons(region), key=lambda p: -p.area):
        for ring, value in ((polygon.exterior, 1), *((hole, 0) for hole in polygon.interiors)):
            # PIL counts from the middle of a pixel.
            points = np.asarray(ring.coords)[:, :2] / scale - 0.5
            draw.polygon([tuple(point) for point in points.tolist()], fill=value)
    fine = np.asarray(image).reshape(size.height, SUPERSAMPLED, size.width, SUPERSAMPLED)
    return fine.mean(axis=(1, 3), dtype=np.float32)


def _even_odd(loops: list[shapely.Polygon]) -> BaseGeometry:
    """What lies in an odd number of rings that do not cross; rings inside holes are handled by depth."""
    order = sorted(loops, key=lambda loop: -loop.area)
    tree = shapely.STRtree(order)
    points = shapely.points([loop.exterior.coords[0] for loop in order])
    inner, outer = tree.query(points, predicate="within")
    depth = np.bincount(inner[inner != outer], minlength=len(order))
    solid = [loop for loop, level in zip(order, depth, strict=True) if level % 2 == 0]
    holes = [loop for loop, level in zip(order, depth, strict=True) if level % 2 == 1]
    return shapely.difference(shapely.union_all(solid), shapely.union_all(holes))


def _polygons(region: BaseGeometry) -> list[shapely.Polygon]:
    parts = shapely.get_parts(region).tolist()
    nested = [p for part in parts for p in shapely.get_parts(part).tolist()]
    return [part for part in nested if isinstance(part, shapely.Polygon) and not part.is_empty]
