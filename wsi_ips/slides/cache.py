"""Decoded native tiles, kept while their neighbours may still need them."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from functools import cached_property

import numpy as np
from openslide import OpenSlideCache

from wsi_ips.slides.base import RGB

CACHE_MB = 64
"""Default size: a band of 256 px tiles across 85 000 px of tissue."""
SPARE_BYTES = 8 * 2**20
"""Memory of dropped tiles that is kept for new ones."""


class TileCache:
    """The least recently used tiles go first; one cache serves all slides and threads.

    The memory of a dropped tile is used again for the next one: fresh memory costs the operating system nearly as
    long as the decoder needs to fill it.

    Parameters
    ----------
    max_bytes
        Bytes of pixels at most.
    """

    def __init__(self, max_bytes: int = CACHE_MB * 2**20) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._tiles: OrderedDict[tuple[Hashable, ...], RGB] = OrderedDict()
        self._spare: list[RGB] = []
        self._lock = threading.RLock()  # dropping a tile inside gives its memory back inside

    @cached_property
    def for_openslide(self) -> OpenSlideCache:
        """OpenSlide's own cache of the same size, to be shared by all its slides."""
        return OpenSlideCache(self._max_bytes)

    @property
    def bytes_held(self) -> int:
        """Bytes of pixels held now, without OpenSlide's."""
        return self._bytes + sum(memory.nbytes for memory in self._spare)

    def blank(self, shape: tuple[int, int, int]) -> RGB:
        """Memory for a tile; it goes back when nobody refers to the returned array any more."""
        with self._lock:
            fitting = next((n for n, memory in enumerate(self._spare) if memory.shape == shape), None)
            memory = np.empty(shape, np.uint8) if fitting is None else self._spare.pop(fitting)
        tile = memory.view()
        weakref.finalize(tile, self._give_back, memory).atexit = False
        return tile

    def get(self, owner: Hashable, place: Hashable) -> RGB | None:
        """A tile, or None; its pixels must not be written to."""
        with self._lock:
            tile = self._tiles.get((owner, place))
            if tile is not None:
                self._tiles.move_to_end((owner, place))
            return tile

    def put(self, owner: Hashable, place: Hashable, tile: RGB) -> None:
        """Keep a tile; what is least recently used makes room."""
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
