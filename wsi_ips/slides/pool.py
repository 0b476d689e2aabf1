"""Open slides, at most so many, over one cache of decoded pixels."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from wsi_ips.errors import SlideError
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.cache import CACHE_MB, TileCache

MAX_OPEN = 32


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    reader: SlideReader | None = None
    users: int = 0
    broken: bool = False


class SlidePool:
    """Keeps slides open between uses; the least recently used are closed first.

    Opening a slide costs some ten milliseconds, as much as decoding a hundred patches, and every open one costs
    memory and file handles: so they are kept, and their number is bounded. Safe to use from several threads.

    Parameters
    ----------
    max_open
        Slides kept open. Those in use at the moment are never closed, so there can be as many as threads.
    cache_mb
        Decoded tiles kept, for all slides together, MiB.
    """

    def __init__(self, *, max_open: int = MAX_OPEN, cache_mb: int = CACHE_MB) -> None:
        self.cache = TileCache(cache_mb * 2**20)
        self._max_open = max_open
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Slides open now."""
        return len(self._entries)

    @contextmanager
    def lease(self, key: Hashable, opener: Callable[[TileCache], SlideReader]) -> Iterator[SlideReader]:
        """Use a slide; it is opened if it is not open yet.

        Parameters
        ----------
        key
            Same key, same slide.
        opener
            Opens it over the given cache; its errors come out here.
        """
        entry = self._take(key)
        try:
            with entry.lock:
                if entry.reader is None:
                    entry.reader = opener(self.cache)
            yield entry.reader
        except SlideError:
            entry.broken = True  # after a failed read OpenSlide fails for ever: the next use opens it anew
            raise
        finally:
            self._give_back(key, entry)

    def close(self) -> None:
        """Close the slides that nobody uses; the pool can be used again."""
        with self._lock:
            idle = [key for key, entry in self._entries.items() if entry.users == 0]
            closing = [self._entries.pop(key) for key in idle]
        _close(closing)

    def _take(self, key: Hashable) -> _Entry:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            entry.users += 1
            return entry

    def _give_back(self, key: Hashable, entry: _Entry) -> None:
        closing: list[_Entry] = []
        with self._lock:
            entry.users -= 1
            if entry.broken or entry.reader is None:
                if self._entries.get(key) is entry:
                    del self._entries[key]
                if entry.users == 0:
                    closing.append(entry)
            surplus = len(self._entries) - self._max_open
            idle = [k for k, e in self._entries.items() if e.users == 0][: max(0, surplus)]
            closing += [self._entries.pop(k) for k in idle]
        _close(closing)


def _close(entries: list[_Entry]) -> None:
    for entry in entries:
        if entry.reader is not None:
            entry.reader.close()
