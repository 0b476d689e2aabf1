"""The patch stream: pixels of many tiles of many slides, in order, in bounded memory.

The request is cut into runs of neighbouring tiles of one slide that end up in one chunk. A few threads read runs ahead,
straight into the chunk's memory (decoders release the GIL); the consumer gets chunks in the order of the request. The
number of chunk buffers is the number of chunks read ahead and held, and buffers are reused. This bounds the memory and
slows the readers down to the consumer's speed, for slides of any size.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import RegionReadError, SlideError
from wsi_ips.geometry import Point, Size
from wsi_ips.slides import SlideReader, read_patch
from wsi_ips.tiles.index import TileIndex

RUN_TILES = 32  # tiles that a thread reads in one go

Pixels = NDArray[Any]  # uint8, shape (n, h, w, 3); for stored features, float16, shape (n, F)
Allocate = Callable[[tuple[int, ...]], Pixels]  # function from a shape to contiguous uint8 memory of that shape


class PatchChunk(NamedTuple):
    """Patches of one or several slides."""

    pixels: Pixels  # uint8, shape (n, h, w, 3); of stored features float16, shape (n, F)
    slot: NDArray[np.int32]  # position of each patch's slide among the requests, int32, shape (n,)
    tile: NDArray[np.int32]  # tile id within the slide, int32, shape (n,)


@dataclass(frozen=True)
class SlideTiles:
    """Tiles of one slide to be read."""

    slot: int  # number that is returned with each of its patches
    slide_id: str  # for messages
    index: TileIndex
    # opens the slide for a ``with`` block, in a reading thread, from the first tile to the last
    open: Callable[[], AbstractContextManager[SlideReader]]
    tiles: NDArray[np.int32] | None  # tile ids to read, in this order; None reads all

    @property
    def wanted(self) -> NDArray[np.int32]:
        """Tile ids to read."""
        return np.arange(len(self.index), dtype=np.int32) if self.tiles is None else self.tiles

    def read(self) -> Pixels:
        """Read the wanted tiles at once, uint8, shape (n, h, w, 3)."""
        size, wanted = self.index.plan.patch_size, self.wanted
        pixels = np.empty((len(wanted), size.height, size.width, 3), np.uint8)
        if len(wanted):
            slide = _SlideInUse(self, tiles_left=len(wanted))
            try:
                slide.read(wanted, pixels, threading.Event())
            finally:
                slide.close()
        return pixels

    def only(self, tiles: NDArray[np.int32]) -> Self:
        """Return the request with other tiles to read."""
        return replace(self, tiles=tiles)

    def at_slot(self, slot: int) -> Self:
        """Return the request under another number."""
        return replace(self, slot=slot)


class PatchStream:
    """Iterates over chunks of patches in the order of the requests, for any number of threads."""

    def __init__(
        self,
        requests: Sequence[SlideTiles],
        *,
        chunk_size: int,
        readers: int,
        prefetch_chunks: int,
        held_chunks: int = 1,  # chunks in use at a time; a chunk's memory is overwritten after this many later ones
        allocate: Allocate | None = None,
    ) -> None:
        self._requests = [request for request in requests if len(request.wanted)]
        sizes = {request.index.plan.patch_size for request in self._requests}
        if len(sizes) > 1:
            raise ValueError(f"all patches of a stream must have one size; these requests have {sorted(sizes)}")
        self._patch_size = next(iter(sizes), Size(0, 0))
        self._chunk_size = min(chunk_size, sum(len(request.wanted) for request in self._requests))
        self._buffers_left, self._held_chunks = prefetch_chunks + held_chunks, held_chunks
        self._allocate = allocate or (lambda shape: np.empty(shape, np.uint8))
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="wsi-ips-read")
        self._stopping = threading.Event()
        self._slides: list[_SlideInUse] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        """Stop the threads and close the slides, also early; no thread is left when it returns."""
        self._stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for slide in self._slides:
            slide.close()
        self._slides.clear()

    def __iter__(self) -> Iterator[PatchChunk]:
        """Yield chunks in order; ``held_chunks`` tells how long their memory stays valid."""
        plans = self._plans()
        free: deque[_Buffer] = deque()
        filling: deque[_Buffer] = deque()
        held: deque[_Buffer] = deque()
        while True:
            self._fill(plans, free, filling)
            if not filling:
                return
            buffer = filling.popleft()
            for future in buffer.reading:
                future.result()
            held.append(buffer)
            yield buffer.chunk
            if len(held) >= self._held_chunks:
                free.append(held.popleft())

    def _fill(self, plans: Iterator[list[_Run]], free: deque[_Buffer], filling: deque[_Buffer]) -> None:
        """Start reading into every free buffer; buffers are allocated when first needed."""
        while free or self._buffers_left:
            plan = next(plans, None)
            if plan is None:
                return
            if free:
                buffer = free.popleft()
            else:
                self._buffers_left -= 1
                size = self._patch_size
                buffer = _Buffer(self._allocate((self._chunk_size, size.height, size.width, 3)))
            buffer.start(plan, self._pool, self._stopping)
            filling.append(buffer)

    def _plans(self) -> Iterator[list[_Run]]:
        """Yield the runs of each chunk."""
        plan: list[_Run] = []
        row = 0
        for request in self._requests:
            wanted, start = request.wanted, 0
            slide = _SlideInUse(request, tiles_left=len(wanted))
            self._slides = [s for s in self._slides if not s.finished] + [slide]
            while start < len(wanted):
                count = min(RUN_TILES, len(wanted) - start, self._chunk_size - row)
                plan.append(_Run(slide, wanted[start : start + count], row))
                start, row = start + count, row + count
                if row == self._chunk_size:
                    yield plan
                    plan, row = [], 0
        if plan:
            yield plan


def read_tiles(request: SlideTiles) -> Pixels:
    """Read the wanted tiles of one slide at once: pixels, uint8 (n, h, w, 3), or features, float16 (n, F)."""
    return request.read()


class _SlideInUse:
    """A slide that the first run opens and the last run closes."""

    def __init__(self, request: SlideTiles, *, tiles_left: int) -> None:
        self.request, self._tiles_left = request, tiles_left
        self._opened = ExitStack()
        self._reader: SlideReader | None = None
        self._error: SlideError | None = None
        self._lock = threading.Lock()

    @property
    def finished(self) -> bool:
        return self._tiles_left <= 0

    def read(self, tiles: NDArray[np.int32], out: Pixels, stopping: threading.Event) -> None:
        """Read patches into ``out``, shape (n, h, w, 3), one after the other, until ``stopping`` is set."""
        try:
            reader = self._enter()
            for row, tile in enumerate(tiles):
                if stopping.is_set():
                    return
                self._patch(reader, int(tile), out[row])
        except SlideError as error:
            self._error = error  # other threads may still be reading: close() is called when all have stopped
            raise
        with self._lock:
            self._tiles_left -= len(tiles)
        if self.finished:
            self.close()

    def close(self) -> None:
        """Close the slide, which no thread may be reading, and pass on the error that ended its use."""
        with self._lock:
            self._reader, error = None, self._error
            self._opened.__exit__(type(error) if error else None, error, None)

    def _enter(self) -> SlideReader:
        with self._lock:
            if self._reader is None:
                self._reader = self._opened.enter_context(self.request.open())
                self._check_same_levels(self._reader)
            return self._reader

    def _check_same_levels(self, reader: SlideReader) -> None:
        """Check the reader and the size: with others, the same level number would mean another scale."""
        index, info = self.request.index, reader.info
        if (info.reader, info.size_px0) != (index.reader, index.size_px0):
            raise SlideError(
                f"slide {self.request.slide_id}: opened by {info.reader} with {info.size_px0.width} x "
                f"{info.size_px0.height} px, but tiled with {index.reader} at {index.size_px0.width} x "
                f"{index.size_px0.height} px; run `wsi-ips tile` again"
            )

    def _patch(self, reader: SlideReader, tile: int, out: Pixels) -> None:
        index = self.request.index
        location = Point(int(index.x[tile]), int(index.y[tile]))
        try:
            read_patch(reader, location, index.plan, out)
        except RegionReadError as error:
            width, height = index.plan.footprint_px0
            raise RegionReadError(
                f"slide {self.request.slide_id}: tile {tile} (level-0 x {location.x}, y {location.y}, {width:.0f} x "
                f"{height:.0f} px): {error}",
                slide_id=self.request.slide_id,
            ) from error


class _Run(NamedTuple):
    """Tiles of one slide, and the row of the chunk that receives the first of them."""

    slide: _SlideInUse
    tiles: NDArray[np.int32]
    row: int


class _Buffer:
    """Memory of one chunk, used for many chunks in turn."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self._slot, self._tile = (np.empty(len(pixels), np.int32) for _ in range(2))
        self._filled = 0
        self.reading: list[Future[None]] = []

    def start(self, plan: list[_Run], pool: ThreadPoolExecutor, stopping: threading.Event) -> None:
        """Let the pool read the runs of a chunk."""
        self.reading = []
        for slide, tiles, row in plan:
            rows = slice(row, row + len(tiles))
            self._slot[rows], self._tile[rows], self._filled = slide.request.slot, tiles, row + len(tiles)
            self.reading.append(pool.submit(slide.read, tiles, self._pixels[rows], stopping))

    @property
    def chunk(self) -> PatchChunk:
        n = self._filled
        return PatchChunk(self._pixels[:n], self._slot[:n], self._tile[:n])
