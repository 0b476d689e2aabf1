"""Bounded caches of open slides and of the decoded tiles they share."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from openslide import OpenSlideCache

from wsi_ips.errors import SlideError
from wsi_ips.slides.base import RGB, SlideReader

MAX_OPEN = 32  # slides kept open between reads
MAX_HELD = 2**28  # bytes of decoded pixels in slides kept open between reads: plain images are in memory as a whole
CACHE_MB = 64  # size of the tile cache, MiB: a band of 256 px tiles across 85 000 px of tissue
SPARE_BYTES = 8 * 2**20  # memory of dropped tiles that is kept for new tiles


class TileCache:
    """Least-recently-used cache of at most ``max_bytes`` of decoded tiles, for all slides and threads.

    The memory of a dropped tile is reused for the next one: the operating system takes nearly as long to provide
    fresh memory as the decoder takes to fill it.
    """

    def __init__(self, max_bytes: int = CACHE_MB * 2**20) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._tiles: OrderedDict[tuple[Hashable, ...], RGB] = OrderedDict()
        self._spare: list[RGB] = []
        self._lock = threading.RLock()  # re-entrant: dropping a tile calls _give_back

    @cached_property
    def for_openslide(self) -> OpenSlideCache:
        """OpenSlide's own cache of the same size, shared by all its slides."""
        return OpenSlideCache(self._max_bytes)

    @property
    def bytes_held(self) -> int:
        """Bytes of pixels held now, without OpenSlide's cache."""
        return self._bytes + sum(memory.nbytes for memory in self._spare)

    def blank(self, shape: tuple[int, int, int]) -> RGB:
        """Return memory for a tile; it is reused once the returned array is no longer referenced."""
        with self._lock:
            fitting = next((n for n, memory in enumerate(self._spare) if memory.shape == shape), None)
            memory = np.empty(shape, np.uint8) if fitting is None else self._spare.pop(fitting)
        tile = memory.view()
        weakref.finalize(tile, self._give_back, memory).atexit = False
        return tile

    def get(self, owner: Hashable, place: Hashable) -> RGB | None:
        """Return a tile, or None; its pixels must not be changed."""
        with self._lock:
            tile = self._tiles.get((owner, place))
            if tile is not None:
                self._tiles.move_to_end((owner, place))
            return tile

    def put(self, owner: Hashable, place: Hashable, tile: RGB) -> None:
        """Keep a tile; the least recently used tiles make room."""
        with self._lock:
            old = self._tiles.pop((owner, place), None)
            self._tiles[owner, place] = tile
            self._bytes += tile.nbytes - (0 if old is None else old.nbytes)
            while self._bytes > self._max_bytes:
                self._bytes -= self._tiles.popitem(last=False)[1].nbytes

    def forget(self, owner: Hashable) -> None:
        """Drop the tiles of one slide."""
        with self._lock:
            for key in [key for key in self._tiles if key[0] == owner]:
                self._bytes -= self._tiles.pop(key).nbytes

    def _give_back(self, memory: RGB) -> None:
        with self._lock:
            self._spare.insert(0, memory)
            while sum(kept.nbytes for kept in self._spare) > SPARE_BYTES:
                self._spare.pop()


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    reader: SlideReader | None = None
    users: int = 0
    broken: bool = False


class SlidePool:
    """Keeps slides open between uses and closes the least recently used first.

    Opening a slide takes some ten milliseconds, as long as decoding a hundred patches, and every open slide costs
    memory and file handles. Slides in use are never closed, so there can be as many as threads. Threads may share a
    pool. ``cache_mb`` is the size of the cache of decoded tiles for all slides together, MiB.
    """

    def __init__(self, *, max_open: int = MAX_OPEN, cache_mb: int = CACHE_MB) -> None:
        self.cache = TileCache(cache_mb * 2**20)
        self._max_open, self._cache_mb = max_open, cache_mb
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[[], SlidePool], tuple[()]]:
        """Arrive in another process without open slides, which cannot be sent."""
        return partial(SlidePool, max_open=self._max_open, cache_mb=self._cache_mb), ()

    def __len__(self) -> int:
        """Slides open now."""
        return len(self._entries)

    @contextmanager
    def lease(self, key: Hashable, opener: Callable[[TileCache], SlideReader]) -> Iterator[SlideReader]:
        """Lend the slide of a key for a ``with`` block; ``opener`` opens it unless it is open already."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            entry.users += 1
        try:
            with entry.lock:
                if entry.reader is None:
                    entry.reader = opener(self.cache)
            yield entry.reader
        except SlideError:
            entry.broken = True  # OpenSlide fails forever after one failed read: reopen it next time
            raise
        finally:
            self._give_back(key, entry)

    def close(self) -> None:
        """Close the slides that are not in use; the pool can be used again."""
        with self._lock:
            closing = [self._entries.pop(key) for key in self._idle()]
        _close(closing)

    def _idle(self) -> list[Hashable]:
        return [key for key, entry in self._entries.items() if entry.users == 0]

    def _give_back(self, key: Hashable, entry: _Entry) -> None:
        closing: list[_Entry] = []
        with self._lock:
            entry.users -= 1
            if entry.broken or entry.reader is None:
                if self._entries.get(key) is entry:
                    del self._entries[key]
                if entry.users == 0:
                    closing.append(entry)
            closing += [self._entries.pop(other) for other in self._surplus()]
        _close(closing)

    def _surplus(self) -> list[Hashable]:
        """Return the idle slides to close, the least recently used first."""
        held = {key: entry.reader.bytes_held if entry.reader else 0 for key, entry in self._entries.items()}
        surplus: list[Hashable] = []
        for key in self._idle():
            if len(held) <= self._max_open and sum(held.values()) <= MAX_HELD:
                break
            del held[key]
            surplus.append(key)
        return surplus


def _close(entries: list[_Entry]) -> None:
    for entry in entries:
        if entry.reader is not None:
            entry.reader.close()
