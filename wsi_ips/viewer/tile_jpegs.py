"""JPEG tiles of all slides: a bounded cache in front of a bounded thread pool."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import simplejpeg

from wsi_ips.slides import RGB
from wsi_ips.viewer.collection import Collection
from wsi_ips.viewer.deepzoom import DeepZoomTiles

T = TypeVar("T")
QUALITY = 88
SLIDES_KNOWN = 64
"""Slides whose Deep Zoom geometry is cached."""


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
    """Tiles and patches as JPEG.

    All coroutines run in one event loop, so the cache needs no lock; reading, shrinking and encoding run in threads. A
    tile that several requests want at the same time is made once. ``cache_mb`` is the size of the cache, MiB.
    """

    def __init__(self, collection: Collection, *, threads: int, cache_mb: int) -> None:
        self._collection = collection
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
        self._cache = BoundedCache(cache_mb * 2**20)
        self._making: dict[Hashable, asyncio.Future[bytes]] = {}
        self._slides: OrderedDict[str, DeepZoomTiles] = OrderedDict()

    async def tile(self, slide_id: str, level: int, column: int, row: int) -> bytes:
        """Return a Deep Zoom tile.

        Raises
        ------
        KeyError
            The slide is unknown.
        IndexError
            The tile does not exist.
        SlideError
            The slide cannot be opened or read.
        """
        slide = self._slides.get(slide_id) or await self.slide(slide_id)
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
