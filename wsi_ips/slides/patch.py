"""Patches and thumbnails at a physical scale, from any reader."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wsi_ips.geometry import MPP_TOLERANCE, Box, Point, Pyramid, ReadPlan, Scale, Size
from wsi_ips.slides.base import RGB, SLACK, SlideReader
from wsi_ips.slides.jpeg_tiles import FACTORS

FINE_MPP = 4.0  # coarsest µm/px of the fine picture of an overview, on which blur is judged
STRIP_PX = 2**24  # most pixels that are read at a time for a thumbnail (48 MB as RGB)


def read_patch(reader: SlideReader, location_px0: Point, plan: ReadPlan, out: RGB | None = None) -> RGB:
    """Read one patch: uint8, shape (patch height, patch width, 3), into ``out`` (contiguous) where given.

    It is averaged by area where the plan resamples. For 2 x 2, 4 x 4 or 8 x 8 pixels, a reader that decodes JPEG tiles
    itself lets the decoder shrink: it leaves out frequencies instead of averaging pixels, which on H&E differs from the
    mean by about one grey level (``benchmarks/reading.py``).
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
    """Read the whole slide at a coarse scale; see :func:`read_area`."""
    return read_area(reader, Box(0, 0, *reader.info.size_px0), target_mpp, max_side_px)


def read_area(reader: SlideReader, area_px0: Box, target_mpp: float, max_side_px: int = 8192) -> tuple[RGB, Scale]:
    """Read a box of the slide at a coarse scale.

    The coarsest level that is fine enough is averaged down by area. It is read in strips, so that memory stays bounded
    for a large slide with a single level. Pixels are never upsampled: a slide coarser than the target keeps its scale.

    Returns the pixels (they cover the box exactly; the longest side has at most ``max_side_px``) and their µm/px.
    Raises ResolutionError where the slide has no scale, else as :meth:`SlideReader.read_region`.
    """
    pyramid = reader.info.pyramid
    width_um, height_um = area_px0.width * pyramid.mpp.x, area_px0.height * pyramid.mpp.y
    size = _size_at(pyramid, area_px0, max(target_mpp, max(width_um, height_um) / max_side_px))
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
    :func:`read_area`. ``fine_mpp`` is the coarsest scale of the fine picture, ``max_side_px`` its longest side at most.
    """
    pyramid = reader.info.pyramid
    whole = Box(0, 0, *pyramid.size_px0)
    target = max(target_mpp, max(whole.width * pyramid.mpp.x, whole.height * pyramid.mpp.y) / max_side_px)
    size = _multiple_of_a_level(pyramid, target) or _size_at(pyramid, whole, target)
    most = min(max_side_px // max(size), whole.width // size.width, whole.height // size.height)
    factor = max(1, min(most, math.ceil(target / fine_mpp / (1 + MPP_TOLERANCE))))
    wanted = Size(size.width * factor, size.height * factor)
    fine = read_shrunk(reader, whole, _level_for(reader, whole, wanted), wanted)
    thumbnail = fine if factor == 1 else np.asarray(Image.fromarray(fine).reduce(factor))
    mpp = Scale(whole.width * pyramid.mpp.x / size.width, whole.height * pyramid.mpp.y / size.height)
    return Overview(thumbnail, fine, mpp, factor)


def _size_at(pyramid: Pyramid, area_px0: Box, mpp: float) -> Size:
    sides = (area_px0.width * pyramid.mpp.x, area_px0.width), (area_px0.height * pyramid.mpp.y, area_px0.height)
    return Size(*(min(most, max(1, round(side_um / mpp))) for side_um, most in sides))


def _multiple_of_a_level(pyramid: Pyramid, mpp: float) -> Size | None:
    """Return the slide's size where a level averaged by a whole factor has this scale (the coarsest such level)."""
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
    """Read a box of a level averaged down to a size (uint8, shape (height, width, 3)); needs no µm/px.

    It is read in strips of whole output rows. The size is at most that of the box on the level.
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
    factors = [f for f in FACTORS if ratio % f == 0 and reader.shrinks(location_px0, level, size, f)]
    if not factors or Size(width * ratio, height * ratio) != size:
        return False
    factor = max(factors)
    rest = ratio // factor
    pixels = out if rest == 1 else np.empty((height * rest, width * rest, 3), np.uint8)
    reader.read_into(pixels, location_px0, level, factor=factor)
    if rest > 1:
        out[:] = np.asarray(Image.fromarray(pixels).reduce(rest))
    return True
