"""JPEG tiles of Deep Zoom pyramids: ``openslide.deepzoom`` computes their places, our readers their pixels.

A bounded cache sits in front of a bounded thread pool.

The size of a level is often rounded down: level 0 of 46003 px, divided by 4, becomes 11500 px. Such a level, off by
less than a pixel, is treated as an exact fraction, so that a tile of the file is a tile of the page and nothing is
resampled; the shift is less than a pixel of that level. The page shows all of level 0 (not limited to the scanned
bounds), so level-0 coordinates of tiles, outlines and links are positions on the page.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numpy as np
import simplejpeg
from openslide import AbstractSlide
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from wsi_ips.geometry import Box, Point, Size
from wsi_ips.slides import RGB, SlideInfo, SlideReader, level0_position, read_shrunk
from wsi_ips.viewer.collection import Collection

T = TypeVar("T")
TILE_PX, QUALITY = 256, 88
OVERVIEW_PX = 4096  # longest side of the overview made for slides without coarse levels (at most 48 MB)
LARGEST_COARSEST_PX = 8192  # slides whose coarsest level is longer get an overview
MOST_PX = 2**24  # larger regions are read in strips
SLIDES_KNOWN = 64  # slides whose Deep Zoom geometry is cached


class DeepZoomTiles:
    """Tiles of one slide, given its header; thread-safe."""

    def __init__(self, info: SlideInfo) -> None:
        self._info = info
        downsamples = [viewing_downsample(info, level) for level in range(len(info.level_sizes))]
        longest = max(info.level_sizes[-1])
        self._coarsest = len(downsamples) - 1
        self._has_overview = longest > LARGEST_COARSEST_PX
        if self._has_overview:
            step = 2 ** math.ceil(math.log2(longest / OVERVIEW_PX))
            downsamples.append(downsamples[-1] * step)
        self._downsamples = downsamples
        levels = cast(AbstractSlide, _Levels(info, downsamples))
        self._generator = DeepZoomGenerator(levels, TILE_PX, overlap=0, limit_bounds=False)
        self._overview: RGB | None = None
        self._lock = threading.Lock()

    @property
    def levels(self) -> int:
        """Number of pyramid levels; the last one is level 0 of the slide."""
        return self._generator.level_count

    def has(self, level: int, column: int, row: int) -> bool:
        """Return whether the tile exists."""
        if not 0 <= level < self.levels:
            return False
        columns, rows = self._generator.level_tiles[level]
        return 0 <= column < columns and 0 <= row < rows

    def render(self, reader: SlideReader, level: int, column: int, row: int) -> RGB:
        """Return an existing tile (see :meth:`has`), at most 256 px a side; raises RegionReadError."""
        place, source, size = self._generator.get_tile_coordinates(level, (column, row))
        out = Size(*self._generator.get_tile_dimensions(level, (column, row)))
        downsample = self._downsamples[source]
        pixel = Point(round(place[0] / downsample), round(place[1] / downsample))
        wanted = Size(max(1, size[0]), max(1, size[1]))
        if source > self._coarsest:
            overview = self._whole(reader)
            return _resized(overview[pixel.y : pixel.y + wanted.height, pixel.x : pixel.x + wanted.width], out)
        return self._read(reader, source, pixel, wanted, out)

    def _read(self, reader: SlideReader, level: int, pixel: Point, size: Size, out: Size) -> RGB:
        """Return pixels of a level; its last row and column are repeated where the page's level is a pixel larger."""
        whole = self._info.level_sizes[level]
        pixel = Point(min(pixel.x, whole.width - 1), min(pixel.y, whole.height - 1))
        inside = Size(min(size.width, whole.width - pixel.x), min(size.height, whole.height - pixel.y))
        there = level0_position(self._info, pixel, level)
        if inside.width * inside.height > MOST_PX:
            downsample = self._info.downsample(level)
            right = min(self._info.size_px0.width, round((pixel.x + inside.width) * downsample.x))
            bottom = min(self._info.size_px0.height, round((pixel.y + inside.height) * downsample.y))
            return read_shrunk(reader, Box(*there, right - there.x, bottom - there.y), level, out)
        factor = size.width // out.width
        whole_factor = inside == size == Size(out.width * factor, out.height * factor)
        if whole_factor and reader.shrinks(there, level, size, factor):
            shrunk = np.empty((out.height, out.width, 3), np.uint8)
            reader.read_into(shrunk, there, level, factor=factor)
            return shrunk
        pixels = reader.read_region(there, level, inside)
        if inside != size:
            missing = ((0, size.height - inside.height), (0, size.width - inside.width), (0, 0))
            pixels = np.pad(pixels, missing, "edge")
        return _resized(pixels, out)

    def _whole(self, reader: SlideReader) -> RGB:
        """Return the overview; the first call reads the whole slide."""
        with self._lock:
            if self._overview is None:
                size = _level_size(self._info, self._downsamples[-1])
                self._overview = read_shrunk(reader, Box(0, 0, *self._info.size_px0), self._coarsest, size)
            return self._overview


class _Levels:
    """The part of an OpenSlide object that ``DeepZoomGenerator`` uses."""

    properties: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, info: SlideInfo, downsamples: list[float]) -> None:
        self.level_downsamples = tuple(downsamples)
        self.level_dimensions = tuple(tuple(_level_size(info, downsample)) for downsample in downsamples)
        self.dimensions = self.level_dimensions[0]

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Return the coarsest level that is not coarser than asked for."""
        fine = [n for n, d in enumerate(self.level_downsamples) if d <= downsample * 1.001]
        return max(fine, default=0)


def viewing_downsample(info: SlideInfo, level: int) -> float:
    """Return level-0 pixels per pixel of a level; a whole number where the size was only rounded down."""
    stated = info.downsample(level)
    mean = (stated.x + stated.y) / 2
    whole = round(mean)
    size0, size = info.size_px0, info.level_sizes[level]
    cut = max(abs(size0.width - whole * size.width), abs(size0.height - whole * size.height))
    return float(whole) if cut < whole else mean


def _level_size(info: SlideInfo, downsample: float) -> Size:
    return Size(math.ceil(info.size_px0.width / downsample), math.ceil(info.size_px0.height / downsample))


def _resized(pixels: RGB, size: Size) -> RGB:
    if pixels.shape[:2] == (size.height, size.width):
        return np.ascontiguousarray(pixels)
    return np.asarray(Image.fromarray(pixels).resize((size.width, size.height), Image.Resampling.BOX))


class BoundedCache:
    """Least-recently-used cache of byte strings, bounded by their total size. Not thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self.bytes_held = max_bytes, 0
        self._values: OrderedDict[Hashable, bytes] = OrderedDict()

    def get(self, key: Hashable) -> bytes | None:
        """Return the value, or None."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Hashable, value: bytes) -> None:
        """Add a value and drop the least recently used ones until all fit."""
        self.bytes_held += len(value) - len(self._values.pop(key, b""))
        self._values[key] = value
        while self.bytes_held > self._max_bytes:
            self.bytes_held -= len(self._values.popitem(last=False)[1])


class Pixels:
    """Tiles and patches as JPEG; a tile that several requests want at the same time is made once.

    All coroutines run in one event loop, so the cache needs no lock; reading, shrinking and encoding run in threads.
    """

    def __init__(self, collection: Collection, *, threads: int, cache_mb: int) -> None:
        self._collection = collection
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
        self._cache = BoundedCache(cache_mb * 2**20)
        self._making: dict[Hashable, asyncio.Future[bytes]] = {}
        self._slides: OrderedDict[str, DeepZoomTiles] = OrderedDict()

    async def tile(self, slide_id: str, level: int, column: int, row: int) -> bytes:
        """Return a Deep Zoom tile; raises KeyError (no such slide), IndexError (no such tile), SlideError."""
        slide = await self.slide(slide_id)
        if not slide.has(level, column, row):
            raise IndexError(f"no tile {column}, {row} on level {level}")

        def make() -> bytes:
            with self._collection.open(slide_id) as reader:
                return encoded(slide.render(reader, level, column, row))

        return await self._made((slide_id, level, column, row), make)

    async def patch(self, slide_id: str, tile: int) -> bytes:
        """Return a tile as the model sees it; raises as :meth:`tile`."""
        return await self._made((slide_id, tile), lambda: encoded(self._collection.patch(slide_id, tile)))

    async def slide(self, slide_id: str) -> DeepZoomTiles:
        """Return the Deep Zoom geometry of a slide; raises as :meth:`tile`."""

        def geometry() -> DeepZoomTiles:
            with self._collection.open(slide_id) as reader:
                return DeepZoomTiles(reader.info)

        if slide_id not in self._slides:
            made = await self.run(geometry)
            self._slides.setdefault(slide_id, made)  # another request may have stored it first
        found = self._slides[slide_id]
        self._slides.move_to_end(slide_id)
        while len(self._slides) > SLIDES_KNOWN:
            self._slides.popitem(last=False)
        return found

    async def run(self, work: Callable[[], T]) -> T:
        """Run a function in the thread pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Cancel waiting work and wait for running work."""
        self._pool.shutdown(cancel_futures=True)

    async def _made(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        found = self._cache.get(key)
        if found is not None:
            return found
        making = self._making.get(key)
        if making is None:
            making = asyncio.ensure_future(self._make(key, make))
            self._making[key] = making
        return await asyncio.shield(making)  # a request that is cancelled must not cancel the others

    async def _make(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        try:
            value = await self.run(make)
            self._cache.put(key, value)
            return value
        finally:
            del self._making[key]


def encoded(pixels: RGB) -> bytes:
    """Encode pixels as JPEG."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=QUALITY, colorspace="RGB"))
