"""Slides are opened once, kept in bounded number, and opened anew after an error."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from wsi_ips.errors import RegionReadError
from wsi_ips.geometry import Scale
from wsi_ips.slides import ArrayReader, SlidePool, TileCache


class Opener:
    """Counts the readers it has made and how many of them are open."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.made: list[ArrayReader] = []
        self.delay_s = delay_s

    def __call__(self, cache: TileCache) -> ArrayReader:
        time.sleep(self.delay_s)
        self.made.append(ArrayReader([np.zeros((4, 4, 3), np.uint8)], Scale(1, 1)))
        return self.made[-1]

    @property
    def open(self) -> int:
        return sum(not reader._closed for reader in self.made)


def test_a_slide_is_opened_once():
    pool, opener = SlidePool(), Opener()
    for _ in range(3):
        with pool.lease("a", opener) as reader:
            assert reader is opener.made[0]
    assert (len(opener.made), opener.open) == (1, 1)
    pool.close()
    assert opener.open == 0


def test_threads_that_want_the_same_slide_open_it_once():
    pool, opener, seen = SlidePool(), Opener(delay_s=0.05), []

    def use() -> None:
        with pool.lease("a", opener) as reader:
            seen.append(reader)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opener.made) == 1
    assert len(seen) == 8


def test_the_least_recently_used_is_closed():
    pool, openers = SlidePool(max_open=2), {name: Opener() for name in "abc"}
    for name in "ababc":
        with pool.lease(name, openers[name]):
            pass
    assert [openers[name].open for name in "abc"] == [0, 1, 1]
    assert len(pool) == 2


def test_slides_that_hold_their_pixels_are_closed_before_memory_is_full(monkeypatch):
    monkeypatch.setattr("wsi_ips.slides.pool.MAX_HELD", 100)

    def large(cache: TileCache) -> ArrayReader:
        reader = ArrayReader([np.zeros((4, 4, 3), np.uint8)], Scale(1, 1))
        reader.bytes_held = 48
        return reader

    pool, opener = SlidePool(), Opener()
    for name in ("free", "a", "b", "c"):
        with pool.lease(name, opener if name == "free" else large):
            pass
    assert opener.open == 0  # the least recently used goes first, whatever it holds
    assert list(pool._entries) == ["b", "c"]


def test_a_slide_in_use_is_never_closed():
    pool, one, other = SlidePool(max_open=1), Opener(), Opener()
    with pool.lease("one", one):
        with pool.lease("other", other):
            assert one.open == 1
        assert (one.open, other.open) == (1, 0)


def test_after_a_failed_read_the_slide_is_opened_anew():
    pool, opener = SlidePool(), Opener()
    with pytest.raises(RegionReadError), pool.lease("a", opener):
        raise RegionReadError("slide a: broken")
    assert opener.open == 0
    with pool.lease("a", opener) as reader:
        assert reader is opener.made[1]


def test_a_slide_that_cannot_be_opened_leaves_nothing_behind():
    pool = SlidePool()

    def refused(cache: TileCache) -> ArrayReader:
        raise RegionReadError("slide a: no")

    for _ in range(2):
        with pytest.raises(RegionReadError, match="slide a: no"), pool.lease("a", refused):
            pass
    assert len(pool) == 0


def test_the_cache_is_bounded_and_memory_goes_round():
    cache = TileCache(max_bytes=10 * 300)
    first = cache.blank((10, 10, 3))
    address = first.__array_interface__["data"][0]
    cache.put("s", 0, first)
    del first
    for number in range(1, 30):
        cache.put("s", number, cache.blank((10, 10, 3)))
        assert cache._bytes <= 3000
    assert cache.get("s", 0) is None
    assert cache.get("s", 29) is not None
    alive = {cache.blank((10, 10, 3)).__array_interface__["data"][0] for _ in range(3)}
    assert len(alive) == 1  # given back and handed out again
    assert address is not None


def test_memory_is_not_handed_out_while_somebody_looks_at_it():
    cache = TileCache(max_bytes=300)
    tile = cache.blank((10, 10, 3))
    tile[:] = 7
    cache.put("s", 0, tile)
    del tile
    kept = cache.get("s", 0)
    for number in range(1, 20):
        other = cache.blank((10, 10, 3))
        other[:] = 99
        cache.put("s", number, other)
        del other
    assert (kept == 7).all()


def test_a_slides_tiles_can_be_forgotten():
    cache = TileCache()
    for owner in "ab":
        cache.put(owner, 0, cache.blank((10, 10, 3)))
    cache.forget("a")
    assert cache.get("a", 0) is None
    assert cache.get("b", 0) is not None
