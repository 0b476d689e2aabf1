"""Patches and thumbnails at a physical scale, from any reader."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from wsi_ips.geometry import Point, ReadPlan, Scale, Size
from wsi_ips.slides.base import RGB, SlideReader

STRIP_PX = 2**24
"""Most pixels read at a time for a thumbnail (48 MB as RGB)."""


def read_patch(reader: SlideReader, location_px0: Point, plan: ReadPlan) -> RGB:
    """Read one patch.

    Parameters
    ----------
    reader
        The slide.
    location_px0
        Top-left corner, level-0 pixels.
    plan
        Level, read size and patch size.

    Returns
    -------
    numpy.ndarray
        uint8, shape (patch height, patch width, 3), averaged by area where the plan resamples.

    Raises
    ------
    RegionReadError
        The file cannot deliver the region.
    """
    pixels = reader.read_region(location_px0, plan.level, plan.read_size)
    return area_average(pixels, plan.patch_size) if plan.resamples else pixels


def read_thumbnail(reader: SlideReader, target_mpp: float, max_side_px: int = 8192) -> tuple[RGB, Scale]:
    """Read the whole slide at a coarse scale.

    The coarsest level that is finer than the target is averaged down by area, in strips, so that memory
    stays bounded also for a large slide with a single level. Pixels are never upsampled: a slide
    coarser than the target is read as it is.

    Parameters
    ----------
    reader
        The slide.
    target_mpp
        Requested µm/px.
    max_side_px
        Longest side at most; a coarser scale is taken where needed.

    Returns
    -------
    thumbnail
        uint8, shape (height, width, 3); covers all of level 0.
    mpp
        µm per thumbnail pixel, per axis.

    Raises
    ------
    ResolutionError
        The slide has no scale.
    RegionReadError
        The file cannot deliver it.
    """
    pyramid = reader.info.pyramid
    width_um, height_um = pyramid.size_px0.width * pyramid.mpp.x, pyramid.size_px0.height * pyramid.mpp.y
    target = max(target_mpp, max(width_um, height_um) / max_side_px)
    size = Size(
        min(pyramid.size_px0.width, max(1, round(width_um / target))),
        min(pyramid.size_px0.height, max(1, round(height_um / target))),
    )
    fine = [k for k, s in enumerate(pyramid.level_sizes) if s.width >= size.width and s.height >= size.height]
    level = max(fine, default=0)
    thumbnail = _shrunk_level(reader, level, size)
    return thumbnail, Scale(width_um / size.width, height_um / size.height)


def area_average(pixels: RGB, size: Size) -> RGB:
    """Average down to a size; every source pixel counts by the area it covers."""
    return np.asarray(Image.fromarray(pixels).resize(tuple(size), Image.Resampling.BOX))


def _shrunk_level(reader: SlideReader, level: int, size: Size) -> RGB:
    """A level averaged down to ``size``, read in strips of whole output rows."""
    source = reader.info.level_sizes[level]
    out = np.empty((size.height, size.width, 3), np.uint8)
    ratio = source.height / size.height  # source rows per output row
    rows = max(1, math.floor(STRIP_PX / source.width / ratio))
    downsample_y = reader.info.size_px0.height / source.height
    for top in range(0, size.height, rows):
        bottom = min(size.height, top + rows)
        first, last = math.floor(top * ratio), min(source.height, math.ceil(bottom * ratio))
        location = Point(0, math.ceil(first * downsample_y - 1e-6))
        strip = Image.fromarray(reader.read_region(location, level, Size(source.width, last - first)))
        box = (0.0, top * ratio - first, float(source.width), bottom * ratio - first)
        out[top:bottom] = np.asarray(
            strip.resize((size.width, bottom - top), Image.Resampling.BOX, box=box)
        )
    return out
