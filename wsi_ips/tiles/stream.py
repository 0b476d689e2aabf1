"""The patch stream: pixels of many tiles of many slides, in order, in bounded memory.

The request is cut into runs of neighbouring tiles of one slide. A few threads read runs ahead (decoders
release the GIL); the consumer takes them in the order of the request and packs them into chunks. At most
``prefetch_chunks`` chunks' worth of runs are read ahead, whatever the slides' size: that is the back-pressure.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import RegionReadError, SlideError
from wsi_ips.geometry import Point
from wsi_ips.slides import SlideReader, read_patch
from wsi_ips.tiles.index import TileIndex

RUN_TILES = 32
"""Tiles a thread reads at a stretch."""

Pixels = NDArray[np.uint8]


class PatchChunk(NamedTuple):
    """Patches of one or several slides.

    Attributes
    ----------
    pixels
        uint8, shape (n, h, w, 3).
    slot
        Position of each patch's slide among the requests, int32, shape (n,).
    tile
        Tile id within the slide, int32, shape (n,).
    """

    pixels: Pixels
    slot: NDArray[np.int32]
    tile: NDArray[np.int32]


@dataclass(frozen=True)
class SlideTiles:
    """Tiles of one slide to be read.

    Attributes
    ----------
    slot
        Number that comes back with each of its patches.
    slide_id
        For messages.
    index
        Where its tiles lie.
    open
        Opens the slide; called in a reading thread when its first tile is due.
    tiles
        Tile ids to read, in this order, int32; None is all.
    """

    slot: int
    slide_id: str
    index: TileIndex
    open: Callable[[], SlideReader]
    tiles: NDArray[np.int32] | None

    @property
    def wanted(self) -> NDArray[np.int32]:
        """Tile ids to read."""
        return np.arange(len(self.index), dtype=np.int32) if self.tiles is None else self.tiles

    def only(self, tiles: NDArray[np.int32]) -> SlideTiles:
        """The same slide with other tiles to read."""
        return replace(self, tiles=tiles)

    def at_slot(self, slot: int) -> SlideTiles:
        """The same request under another number."""
        return replace(self, slot=slot)


class PatchStream:
    """Iterates over chunks of patches in the order of the requests.

    The order and the pixels do not depend on the number of threads. Leaving the ``with`` block, also in the
    middle, stops the threads and closes the slides.

    Parameters
    ----------
    requests
        Slides and their tiles; all patches have one size.
    chunk_size
        Patches per chunk; the last one may be smaller.
    readers
        Reading threads.
    prefetch_chunks
        Chunks read ahead of the consumer.
    """

    def __init__(self, requests: Sequence[SlideTiles], *, chunk_size: int, readers: int, prefetch_chunks: int) -> None:
        self._requests = list(requests)
        self._chunk_size = chunk_size
        self._ahead = max(readers, -(-prefetch_chunks * chunk_size // RUN_TILES))
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="wsi-ips-read")
        self._slides: list[_OpenSlide] = []
        self._pending: deque[tuple[SlideTiles, NDArray[np.int32], Future[Pixels]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and close the slides; no thread is left when it returns."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        for slide in self._slides:
            slide.close()
        self._slides.clear()

    def __iter__(self) -> Iterator[PatchChunk]:
        """Chunks in order.

        Raises
        ------
        RegionReadError
            A tile cannot be read; names slide, tile and place.
        SlideError
            A slide cannot be opened.
        """
        buffer: _ChunkBuffer | None = None
        runs = self._runs()
        for _ in range(self._ahead):
            self._submit_next(runs)
        while self._pending:
            request, tiles, future = self._pending.popleft()
            pixels = future.result()
            self._submit_next(runs)
            buffer = buffer or _ChunkBuffer(self._chunk_size, pixels.shape[1:])
            yield from buffer.add(pixels, request.slot, tiles)
        if buffer is not None:
            yield from buffer.rest()

    def _runs(self) -> Iterator[tuple[_OpenSlide, NDArray[np.int32]]]:
        for request in self._requests:
            tiles = request.wanted
            count = -(-len(tiles) // RUN_TILES)
            slide = _OpenSlide(request, runs=count)
            self._slides.append(slide)
            for run in range(count):
                yield slide, tiles[run * RUN_TILES : (run + 1) * RUN_TILES]

    def _submit_next(self, runs: Iterator[tuple[_OpenSlide, NDArray[np.int32]]]) -> None:
        entry = next(runs, None)
        if entry is not None:
            slide, tiles = entry
            self._slides = [s for s in self._slides if not s.finished]
            self._pending.append((slide.request, tiles, self._pool.submit(slide.read, tiles)))


def read_tiles(request: SlideTiles) -> Pixels:
    """Read the wanted tiles of one slide at once, uint8, shape (n, h, w, 3)."""
    slide = _OpenSlide(request, runs=1)
    return slide.read(request.wanted)


class _OpenSlide:
    """A slide that is opened by the first run and closed by the last."""

    def __init__(self, request: SlideTiles, *, runs: int) -> None:
        self.request, self._runs_left = request, runs
        self._reader: SlideReader | None = None
        self._lock = threading.Lock()

    @property
    def finished(self) -> bool:
        return self._runs_left <= 0

    def read(self, tiles: NDArray[np.int32]) -> Pixels:
        """Patches of some tiles; one array per run."""
        reader = self._opened()
        size = self.request.index.plan.patch_size
        pixels = np.empty((len(tiles), size.height, size.width, 3), np.uint8)
        for row, tile in enumerate(tiles):
            pixels[row] = self._patch(reader, int(tile))
        with self._lock:
            self._runs_left -= 1
            last = self._runs_left == 0
        if last:
            self.close()
        return pixels

    def close(self) -> None:
        with self._lock:
            reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _opened(self) -> SlideReader:
        with self._lock:
            if self._reader is None:
                self._reader = self.request.open()
                self._check_same_levels(self._reader)
            return self._reader

    def _check_same_levels(self, reader: SlideReader) -> None:
        """A level number belongs to one reader of one file; anything else would read the wrong scale."""
        index, info = self.request.index, reader.info
        if (info.reader, info.size_px0) != (index.reader, index.size_px0):
            raise SlideError(
                f"slide {self.request.slide_id}: opened by {info.reader} with {info.size_px0.width} x "
                f"{info.size_px0.height} px, but tiled with {index.reader} at {index.size_px0.width} x "
                f"{index.size_px0.height} px; run `wsi-ips tile` again"
            )

    def _patch(self, reader: SlideReader, tile: int) -> Pixels:
        index = self.request.index
        location = Point(int(index.x[tile]), int(index.y[tile]))
        try:
            return read_patch(reader, location, index.plan)
        except RegionReadError as error:
            width, height = index.plan.footprint_px0
            raise RegionReadError(
                f"slide {self.request.slide_id}: tile {tile} (level-0 x {location.x}, y {location.y}, {width:.0f} x "
                f"{height:.0f} px): {error}",
                slide_id=self.request.slide_id,
            ) from error


class _ChunkBuffer:
    """Packs runs into chunks of a fixed size; each chunk has pixels of its own."""

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        self._size, self._shape = size, shape
        self._start()

    def _start(self) -> None:
        self._pixels = np.empty((self._size, *self._shape), np.uint8)
        self._slot = np.empty(self._size, np.int32)
        self._tile = np.empty(self._size, np.int32)
        self._filled = 0

    def add(self, pixels: Pixels, slot: int, tiles: NDArray[np.int32]) -> Iterator[PatchChunk]:
        taken = 0
        while taken < len(tiles):
            count = min(len(tiles) - taken, self._size - self._filled)
            here, there = slice(self._filled, self._filled + count), slice(taken, taken + count)
            self._pixels[here], self._slot[here], self._tile[here] = pixels[there], slot, tiles[there]
            self._filled, taken = self._filled + count, taken + count
            if self._filled == self._size:
                yield from self.rest()

    def rest(self) -> Iterator[PatchChunk]:
        if self._filled:
            n = self._filled
            yield PatchChunk(self._pixels[:n], self._slot[:n], self._tile[:n])
            self._start()
