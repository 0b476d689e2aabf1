"""Patches and thumbnails at a physical scale, from any reader."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wsi_ips.geometry import MPP_TOLERANCE, Box, Point, ReadPlan, Scale, Size
from wsi_ips.slides.base import RGB, SLACK, SlideReader
from wsi_ips.slides.jpeg_tiles import FACTORS

FINE_MPP = 4.0
"""Coarsest scale of the fine picture of an overview, on which blur is judged, µm/px."""
STRIP_PX = 2**24
"""Most pixels that are read at a time for a thumbnail (48 MB as RGB)."""


def read_patch(reader: SlideReader, location_px0: Point, plan: ReadPlan, out: RGB | None = None) -> RGB:
    """Read one patch.

    Where the plan averages 2 x 2, 4 x 4 or 8 x 8 pixels and the reader decodes JPEG tiles itself, the decoder shrinks.
    It leaves out frequencies instead of averaging pixels, which on H&E differs from the mean by about one grey level
    (``benchmarks/reading.py``).

    Returns uint8, shape (patch height, patch width, 3), averaged by area where the plan resamples.

    Parameters
    ----------
    location_px0
        Top-left corner, level-0 pixels.
    out
        Memory for the patch, contiguous; new memory where None.

    Raises
    ------
    RegionReadError
        The file cannot deliver the region.
    """
    if out is None:
        out = np.empty((plan.patch_size.height, plan.patch_size.width, 3), np.uint8)
    factor = plan.whole_factor
    if factor == 1 or (factor and reader.shrinks(location_px0, plan.level, plan.read_size, factor)):
        reader.read_into(out, location_px0, plan.level, factor=factor)
    else:
        out[:] = area_average(reader.read_region(location_px0, plan.level, plan.read_size), plan.patch_size)
    return out


def read_thumbnail(reader: SlideReader, target_mpp: float, max_side_px: int = 8192) -> tuple[RGB, Scale]:
    """Read the whole slide at a coarse scale; see :func:`read_area`.

    Returns
    -------
    thumbnail
        uint8, shape (height, width, 3); covers all of level 0.
    mpp
        µm per thumbnail pixel, per axis.
    """
    return read_area(reader, Box(0, 0, *reader.info.size_px0), target_mpp, max_side_px)


def read_area(reader: SlideReader, area_px0: Box, target_mpp: float, max_side_px: int = 8192) -> tuple[RGB, Scale]:
    """Read a box of the slide at a coarse scale.

    The coarsest level that is fine enough is averaged down by area. It is read in strips, so that memory stays bounded
    for a large slide with a single level. Pixels are never upsampled: a slide coarser than the target keeps its scale.

    Parameters
    ----------
    max_side_px
        Longest side at most; the scale is coarser where needed.

    Returns
    -------
    pixels
        uint8, shape (height, width, 3); covers the box exactly.
    mpp
        µm per pixel, per axis.

    Raises
    ------
    ResolutionError
        The slide has no scale.
    RegionReadError
        The box is not inside the slide, or the file cannot deliver it.
    """
    pyramid = reader.info.pyramid
    width_um, height_um = area_px0.width * pyramid.mpp.x, area_px0.height * pyramid.mpp.y
    target = max(target_mpp, max(width_um, height_um) / max_side_px)
    size = _size_at(reader, area_px0, target)
    pixels = read_shrunk(reader, area_px0, _level_for(reader, area_px0, size), size)
    return pixels, Scale(width_um / size.width, height_um / size.height)


@dataclass(frozen=True)
class Overview:
    """A whole slide at two scales that fit pixel on pixel."""

    thumbnail: RGB  # uint8, shape (height, width, 3); covers all of level 0
    fine: RGB  # uint8, shape (factor * height, factor * width, 3); the same at a finer scale
    mpp: Scale  # µm per thumbnail pixel, per axis
    factor: int  # fine pixels per thumbnail pixel, along each axis; 1 where the slide has nothing finer

    @property
    def fine_mpp(self) -> Scale:
        """µm per fine pixel, per axis."""
        return Scale(self.mpp.x / self.factor, self.mpp.y / self.factor)


def read_overview(
    reader: SlideReader, target_mpp: float, fine_mpp: float = FINE_MPP, max_side_px: int = 8192
) -> Overview:
    """Read the whole slide at a coarse scale and, from the same pixels, at a finer one.

    A scale within 5 % of a whole multiple of a level is read as that multiple, as for patches; others as in
    :func:`read_area`.

    Parameters
    ----------
    target_mpp
        Requested µm per thumbnail pixel; coarser where the slide is.
    fine_mpp
        Coarsest µm per fine pixel.
    max_side_px
        Longest side of the fine picture at most.

    Raises
    ------
    ResolutionError
        The slide has no scale.
    RegionReadError
        The file cannot deliver its pixels.
    """
    pyramid = reader.info.pyramid
    whole = pyramid.size_px0
    longest_um = max(whole.width * pyramid.mpp.x, whole.height * pyramid.mpp.y)
    target = max(target_mpp, longest_um / max_side_px)
    size = _multiple_of_a_level(reader, target) or _size_at(reader, Box(0, 0, *whole), target)
    most = min(max_side_px // max(size), whole.width // size.width, whole.height // size.height)
    factor = max(1, min(most, math.ceil(target / fine_mpp / (1 + MPP_TOLERANCE))))
    wanted = Size(size.width * factor, size.height * factor)
    fine = read_shrunk(reader, Box(0, 0, *whole), _level_for(reader, Box(0, 0, *whole), wanted), wanted)
    thumbnail = fine if factor == 1 else np.asarray(Image.fromarray(fine).reduce(factor))
    mpp = Scale(whole.width * pyramid.mpp.x / size.width, whole.height * pyramid.mpp.y / size.height)
    return Overview(thumbnail, fine, mpp, factor)


def _size_at(reader: SlideReader, area_px0: Box, mpp: float) -> Size:
    scale, width, height = reader.info.pyramid.mpp, area_px0.width, area_px0.height
    return Size(
        min(width, max(1, round(width * scale.x / mpp))),
        min(height, max(1, round(height * scale.y / mpp))),
    )


def _multiple_of_a_level(reader: SlideReader, mpp: float) -> Size | None:
    """Return the slide's size where a level averaged by a whole factor has this scale (the coarsest such level)."""
    pyramid = reader.info.pyramid
    for level in reversed(range(len(pyramid.level_sizes))):
        size, scale = pyramid.level_sizes[level], pyramid.level_mpp(level)
        factor = round(mpp / max(scale))
        near = factor >= 1 and all(abs(axis * factor / mpp - 1) <= MPP_TOLERANCE for axis in scale)
        if near and size.width % factor == size.height % factor == 0:
            return Size(size.width // factor, size.height // factor)
    return None


def _level_for(reader: SlideReader, area_px0: Box, size: Size) -> int:
    """Return the coarsest level that is fine enough to be averaged down to a size."""
    wanted = Scale(area_px0.width / size.width, area_px0.height / size.height)
    info = reader.info
    return max((k for k in range(len(info.level_sizes)) if max(info.downsample(k).over(wanted)) <= 1.001), default=0)


def area_average(pixels: RGB, size: Size) -> RGB:
    """Average down to a size; every source pixel counts by the area it covers."""
    return np.asarray(Image.fromarray(pixels).resize((size.width, size.height), Image.Resampling.BOX))


def read_shrunk(reader: SlideReader, area_px0: Box, level: int, size: Size) -> RGB:
    """Read a box of a level averaged down to a size, in strips of whole output rows; needs no µm/px.

    Returns uint8, shape (height, width, 3).

    Parameters
    ----------
    size
        Pixels of the result, at most those of the box on that level.

    Raises
    ------
    RegionReadError
        The box is not inside the slide, or the file cannot deliver it.
    """
    info = reader.info
    downsample = info.downsample(level)
    left, right = area_px0.x / downsample.x, area_px0.right / downsample.x  # level pixels, real
    first_column = math.floor(left + SLACK)
    columns = min(info.level_sizes[level].width, math.ceil(right - SLACK)) - first_column
    top, ratio = area_px0.y / downsample.y, area_px0.height / downsample.y / size.height
    rows = max(1, math.floor(STRIP_PX / columns / ratio))
    out = np.empty((size.height, size.width, 3), np.uint8)
    for start in range(0, size.height, rows):
        end = min(size.height, start + rows)
        upper, lower = top + start * ratio, top + end * ratio
        first = math.floor(upper + SLACK)
        last = min(info.level_sizes[level].height, math.ceil(lower - SLACK))
        location = Point(math.ceil(first_column * downsample.x - SLACK), math.ceil(first * downsample.y - SLACK))
        if _shrunk_by_decoder(reader, location, level, Size(columns, last - first), out[start:end]):
            continue
        strip = reader.read_region(location, level, Size(columns, last - first))
        box = (left - first_column, upper - first, right - first_column, lower - first)
        inside = (max(0.0, box[0]), max(0.0, box[1]), min(columns, box[2]), min(last - first, box[3]))
        resized = Image.fromarray(strip).resize((size.width, end - start), Image.Resampling.BOX, box=inside)
        out[start:end] = np.asarray(resized)
    return out


def _shrunk_by_decoder(reader: SlideReader, location_px0: Point, level: int, size: Size, out: RGB) -> bool:
    """Let the decoder average where it can do so exactly; tell whether it did."""
    height, width = out.shape[:2]
    ratio = size.width // width
    if Size(width * ratio, height * ratio) != size:
        return False
    factors = [f for f in FACTORS if ratio % f == 0 and reader.shrinks(location_px0, level, size, f)]
    if not factors:
        return False
    factor = max(factors)
    rest = ratio // factor
    pixels = out if rest == 1 else np.empty((height * rest, width * rest, 3), np.uint8)
    reader.read_into(pixels, location_px0, level, factor=factor)
    if rest > 1:
        out[:] = np.asarray(Image.fromarray(pixels).reduce(rest))
    return True
