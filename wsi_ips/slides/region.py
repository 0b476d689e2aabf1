"""The edge policy of all readers: a region lies inside its level, or it is an error."""

from __future__ import annotations

import math

from wsi_ips.errors import RegionReadError
from wsi_ips.geometry import Point, Size
from wsi_ips.slides.base import SlideInfo

SLACK = 1e-6
"""Relative rounding allowed when level-0 pixels are divided by a downsample."""


def level_location(info: SlideInfo, location_px0: Point, level: int) -> tuple[float, float]:
    """A level-0 position in pixels of a level, as real numbers."""
    downsample = info.downsample(level)
    return location_px0.x / downsample.x, location_px0.y / downsample.y


def level_pixel(info: SlideInfo, location_px0: Point, level: int, size_px: Size) -> Point:
    """The pixel of a level nearest to a level-0 position from which a region still fits into the level."""
    x, y = level_location(info, location_px0, level)
    width, height = info.level_sizes[level]
    return Point(min(round(x), width - size_px.width), min(round(y), height - size_px.height))


def level0_position(info: SlideInfo, pixel: Point, level: int) -> Point:
    """The level-0 pixel of a pixel of a level; :func:`level_pixel` leads back to it.

    It is the first level-0 pixel that begins within the level's pixel, so that a reader that rounds down (OpenSlide) is
    led back too. Where a level is less than twice as coarse as level 0 that one may be nearer to the next pixel of the
    level: the one before is taken then.
    """
    downsample = info.downsample(level)
    x, y = (_first_px0(at, factor) for at, factor in zip(pixel, downsample, strict=True))
    return Point(x, y)


def _first_px0(pixel: int, downsample: float) -> int:
    first = math.ceil(pixel * downsample - SLACK)
    return first if round(first / downsample) == pixel else first - 1


def require_inside(info: SlideInfo, location_px0: Point, level: int, size_px: Size, *, closed: bool) -> None:
    """Refuse a region that leaves its level, an unknown level, or a closed slide.

    Raises
    ------
    RegionReadError
        Names the slide and the region.
    """
    if closed:
        raise RegionReadError(f"slide {info.name}: read after it was closed")
    if not 0 <= level < len(info.level_sizes):
        raise RegionReadError(f"slide {info.name}: no level {level}; it has {len(info.level_sizes)}")
    x, y = level_location(info, location_px0, level)
    width, height = info.level_sizes[level]
    inside = (
        min(x, y) >= 0
        and min(size_px) >= 1
        and math.floor(x + SLACK) + size_px.width <= width
        and math.floor(y + SLACK) + size_px.height <= height
    )
    if not inside:
        raise RegionReadError(
            f"slide {info.name}: region of {size_px.width} x {size_px.height} px at level-0 {tuple(location_px0)} "
            f"is not inside level {level} ({width} x {height} px)"
        )
