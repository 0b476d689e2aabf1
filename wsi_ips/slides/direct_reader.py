"""Reader of tiled JPEG slides that fetches and decodes the stored tiles itself.

OpenSlide decodes to RGBA, composes and converts, which takes several times as long as decoding alone. Here the bytes of
a tile go from the file to libjpeg-turbo and its pixels straight into the caller's memory. Everything else (levels,
scale, bounds, metadata) comes from the wrapped reader, which also supplies the parts that were not scanned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from wsi_ips.errors import SlideError, UnsupportedSlideError
from wsi_ips.geometry import Box, Point, Size
from wsi_ips.slides.base import RGB, SlideReader, damaged, level0_position, level_pixel, require_inside
from wsi_ips.slides.jpeg_tiles import FACTORS, JpegTiles, decode, find_jpeg_tiles
from wsi_ips.slides.pool import TileCache
from wsi_ips.slides.source import ByteSource

# vendors whose tiles lie side by side as stored; others overlap them, or define the order in metadata
VENDORS = ("aperio", "generic-tiff", "philips")
LARGEST_DIFFERENCE = 2.0  # mean grey levels of a tile by which the wrapped reader's pixels may differ on opening


class _Place(NamedTuple):
    """A stored tile."""

    row: int
    column: int
    box: Box  # of the whole tile in the output, pixels after shrinking; may hang over the edges


class DirectReader(SlideReader):
    """A slide whose levels are JPEG tiles; safe to read from several threads. Closes ``base`` and ``source``.

    Raises
    ------
    UnsupportedSlideError
        The slide is not stored in a way that can be read directly, or the pixels would not be those of ``base``; the
        message says why. ``base`` and ``source`` are left open.
    RegionReadError
        A tile that is compared on opening is damaged.
    """

    owns_source = True

    def __init__(self, base: SlideReader, source: ByteSource, *, cache: TileCache | None = None) -> None:
        info = base.info
        vendor = info.properties.get(f"{info.reader}.vendor", "unknown")
        if vendor not in VENDORS and info.reader == "openslide":
            raise UnsupportedSlideError(f"slide {info.name}: {vendor} places tiles by its own rules")
        self._levels = find_jpeg_tiles(info.name, source, info.level_sizes, jfif_is_ycbcr=info.reader == "tiffslide")
        if vendor == "aperio" and any((level.byte_counts == 0).any() for level in self._levels):
            # OpenSlide leaves such places out on all levels, because the coarser ones were made from garbage.
            raise UnsupportedSlideError(f"slide {info.name}: has tiles without pixels, a fault of Aperio's encoder")
        self._base, self._source, self._cache = base, source, cache or TileCache()
        self._owner = object()  # key in the cache; id() could be reused by another slide
        self._downsamples = [info.downsample(level) for level in range(len(self._levels))]
        tiles = self._levels[0]
        shown = f"direct: JPEG tiles of {tiles.tile.width} x {tiles.tile.height} px, {tiles.components}"
        self.info = replace(info, pixels_by=shown)
        self._require_same_pixels()

    def read_region(self, location_px0: Point, level: int, size_px: Size) -> RGB:
        """See :class:`wsi_ips.slides.base.SlideReader`."""
        self._first_pixel(location_px0, level, size_px)  # before memory is asked for
        out = np.empty((size_px.height, size_px.width, 3), np.uint8)
        self.read_into(out, location_px0, level)
        return out

    def shrinks(self, location_px0: Point, level: int, size_px: Size, factor: int) -> bool:
        """See :class:`wsi_ips.slides.base.SlideReader`."""
        if factor not in FACTORS or not 0 <= level < len(self._levels):
            return False
        x, y = level_pixel(self.info, location_px0, level, size_px)
        return not any(value % factor for value in (x, y, *self._levels[level].tile))

    def read_into(self, out: RGB, location_px0: Point, level: int, *, factor: int = 1) -> None:
        """See :class:`wsi_ips.slides.base.SlideReader`."""
        size = Size(out.shape[1] * factor, out.shape[0] * factor)
        at = self._first_pixel(location_px0, level, size)
        try:
            for place in _places(self._levels[level], at, size, factor):
                self._paste(out, level, place, factor)
        except SlideError:
            raise
        except Exception as error:  # libraries fail in ways that cannot be listed
            by_openslide = " (with `slides.reader: openslide`, OpenSlide reads what it can)"
            remedy = by_openslide if self.info.reader == "openslide" else ""
            raise damaged(self.info, location_px0, level, size, error, remedy) from error

    def close(self) -> None:
        """Release the file."""
        if not self._closed:
            self._closed = True
            self._source.close()
            self._cache.forget(self._owner)
            self._base.close()

    def _first_pixel(self, location_px0: Point, level: int, size: Size) -> Point:
        """Do the work of :func:`require_inside` and :func:`level_pixel`, five times as fast for valid regions."""
        if 0 <= level < len(self._levels) and not self._closed:
            downsample, whole = self._downsamples[level], self._levels[level].size
            x, y = round(location_px0.x / downsample.x), round(location_px0.y / downsample.y)
            if min(location_px0) >= 0 < min(size) and x + size.width <= whole.width and y + size.height <= whole.height:
                return Point(x, y)
        require_inside(self.info, location_px0, level, size, closed=self._closed)
        return level_pixel(self.info, location_px0, level, size)

    def _paste(self, out: RGB, level: int, place: _Place, factor: int) -> None:
        height, width = out.shape[:2]
        key = (level, place.row, place.column, factor)
        tile = self._cache.get(self._owner, key)
        if tile is None and place.box == Box(0, 0, width, height):
            self._decode(level, place, factor, out)  # the patch is a stored tile: no copy
            return
        if tile is None:
            size = self._levels[level].tile
            tile = self._cache.blank((size.height // factor, size.width // factor, 3))
            self._decode(level, place, factor, tile)
            if not Box(0, 0, width, height).contains(place.box):
                self._cache.put(self._owner, key, tile)  # the rest of it belongs to the neighbours
        x, y = place.box.x, place.box.y
        top, left = max(0, y), max(0, x)
        bottom, right = min(height, place.box.bottom), min(width, place.box.right)
        out[top:bottom, left:right] = tile[top - y : bottom - y, left - x : right - x]

    def _decode(self, level: int, place: _Place, factor: int, out: RGB) -> None:
        tiles = self._levels[level]
        number = place.row * tiles.columns + place.column
        count, offset = int(tiles.byte_counts[number]), int(tiles.offsets[number])
        if count == 0:
            self._not_scanned(level, place, factor, out)
            return
        decode(tiles.complete(self._source.read_at(offset, count)), tiles.tile, factor=factor, out=out)

    def _not_scanned(self, level: int, place: _Place, factor: int, out: RGB) -> None:
        """Fill a tile that has no stream with the wrapped reader's pixels, white beyond the level's edge."""
        there, size = self._region_of(level, place.row, place.column)
        tile = self._levels[level].tile
        whole = np.full((tile.height, tile.width, 3), 255, np.uint8)
        whole[: size.height, : size.width] = self._base.read_region(there, level, size)
        height, width = whole.shape[0] // factor, whole.shape[1] // factor
        out[:] = whole.reshape(height, factor, width, factor, 3).mean((1, 3)).round()

    def _region_of(self, level: int, row: int, column: int) -> tuple[Point, Size]:
        """Return the level-0 position of a stored tile, and the size of its part inside the level."""
        tiles = self._levels[level]
        x, y = column * tiles.tile.width, row * tiles.tile.height
        size = Size(min(tiles.tile.width, tiles.size.width - x), min(tiles.tile.height, tiles.size.height - y))
        return level0_position(self.info, Point(x, y), level), size

    def _require_same_pixels(self) -> None:
        """Compare a tile of the finest and one of the coarsest level with the wrapped reader's.

        A wrong colour space shows on any tile, also on glass. On the coarse level the first tile is compared, because
        far from the origin OpenSlide renders between pixels where a downsample is not a whole number. A damaged tile is
        an error (RegionReadError): the wrapped reader would invent its pixels.
        """
        for level in {0, len(self._levels) - 1}:
            tiles = self._levels[level]
            stored = np.flatnonzero(tiles.byte_counts)
            if not len(stored):
                continue
            place = divmod(int(stored[len(stored) // 2 if level == 0 else 0]), tiles.columns)
            there, size = self._region_of(level, *place)
            ours, theirs = self.read_region(there, level, size), self._base.read_region(there, level, size)
            difference = float(np.abs(ours.astype(np.int16) - theirs).mean())
            if difference > LARGEST_DIFFERENCE:
                raise UnsupportedSlideError(
                    f"slide {self.info.name}: read directly, level {level} differs from {self.info.reader}'s pixels by "
                    f"{difference:.0f} grey levels on average"
                )


def _places(tiles: JpegTiles, at: Point, size: Size, factor: int) -> Iterator[_Place]:
    """Yield the tiles under a region, row by row."""
    width, height = tiles.tile.width, tiles.tile.height
    for row in range(at.y // height, (at.y + size.height - 1) // height + 1):
        for column in range(at.x // width, (at.x + size.width - 1) // width + 1):
            left, top = (column * width - at.x) // factor, (row * height - at.y) // factor
            yield _Place(row, column, Box(left, top, width // factor, height // factor))
