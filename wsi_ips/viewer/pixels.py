"""Encoded tiles of all slides: a bounded cache in front of a bounded pool of threads."""

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
"""Slides whose Deep Zoom geometry is kept."""


class BoundedCache:
    """Byte strings, at most so many bytes of them; the least recently used go first. For one thread.

    Parameters
    ----------
    max_bytes
        Bytes kept at most.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self.bytes_held = max_bytes, 0
        self._values: OrderedDict[Hashable, bytes] = OrderedDict()

    def get(self, key: Hashable) -> bytes | None:
        """The value, or None."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Hashable, value: bytes) -> None:
        """Keep a value; what is least recently used makes room."""
        self.bytes_held += len(value) - len(self._values.pop(key, b""))
        self._values[key] = value
        while self.bytes_held > self._max_bytes:
            self.bytes_held -= len(self._values.popitem(last=False)[1])


class Pixels:
    """Tiles and patches as JPEG.

    Its coroutines belong to one event loop, so the cache needs no lock; only reading, shrinking and encoding run in
    threads. A tile that several ask for at a time is made once.

    Parameters
    ----------
    collection
        The slides.
    threads
        Tiles that are made at a time.
    cache_mb
        Encoded tiles kept, MiB.
    """

    def __init__(self, collection: Collection, *, threads: int, cache_mb: int) -> None:
        self._collection = collection
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
        self._cache = BoundedCache(cache_mb * 2**20)
        self._making: dict[Hashable, asyncio.Future[bytes]] = {}
        self._slides: OrderedDict[str, DeepZoomTiles] = OrderedDict()

    async def tile(self, slide_id: str, level: int, column: int, row: int) -> bytes:
        """One tile.

        Raises
        ------
        KeyError
            No such slide.
        IndexError
            No such tile.
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
        """One tile of the model, as it saw it; errors as of :meth:`tile`."""
        return await self._made((slide_id, tile), lambda: encoded(self._collection.patch(slide_id, tile)))

    async def slide(self, slide_id: str) -> DeepZoomTiles:
        """Deep Zoom geometry of a slide, which is opened for it; errors as of :meth:`tile`."""

        def geometry() -> DeepZoomTiles:
            with self._collection.open(slide_id) as reader:
                return DeepZoomTiles(reader.info)

        if slide_id not in self._slides:
            made = await self.run(geometry)
            self._slides.setdefault(slide_id, made)  # another request may have been faster
        found = self._slides[slide_id]
        self._slides.move_to_end(slide_id)
        while len(self._slides) > SLIDES_KNOWN:
            self._slides.popitem(last=False)
        return found

    async def run(self, work: Callable[[], T]) -> T:
        """Do something in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Drop what is waiting, and wait for what is being made."""
        self._pool.shutdown(cancel_futures=True)

    async def _made(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        found = self._cache.get(key)
        if found is not None:
            return found
        making = self._making.get(key)
        if making is None:
            making = asyncio.ensure_future(self._make(key, make))
            self._making[key] = making
        return await asyncio.shield(making)  # who asked first may leave; the others still want it

    async def _make(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        try:
            value = await self.run(make)
            self._cache.put(key, value)
            return value
        finally:
            del self._making[key]


def encoded(pixels: RGB) -> bytes:
    """Pixels as JPEG."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=QUALITY, colorspace="RGB"))
