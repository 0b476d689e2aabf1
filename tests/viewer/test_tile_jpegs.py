"""The cache is bounded, a tile that many want is made once, and answers leave at once."""

from __future__ import annotations

import asyncio
import http.client
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.pyramids import textured_pyramid, write_jpeg_pyramid
from tests.viewing import served
from wsi_ips.errors import RegionReadError
from wsi_ips.viewer.collection import SlideFiles
from wsi_ips.viewer.deepzoom import BoundedCache, Pixels, encoded


def test_the_least_recently_used_go_first_and_bytes_are_counted():
    cache = BoundedCache(100)
    for name in "abc":
        cache.put(name, bytes(30))
    assert cache.get("a") is not None
    cache.put("d", bytes(30))
    assert [cache.get(name) is not None for name in "abcd"] == [True, False, True, True]
    cache.put("a", bytes(10))
    assert cache.bytes_held == 70
    cache.put("huge", bytes(101))
    assert cache.bytes_held == 0
    assert cache.get("huge") is None


class OneSlide(SlideFiles):
    """Counts how often the slide is used."""

    used = 0
    broken = False

    def open(self, slide_id):
        self.used += 1
        return self._opened(slide_id)

    @contextmanager
    def _opened(self, slide_id):
        with super().open(slide_id) as reader:
            time.sleep(0.05)
            if self.broken:
                raise RegionReadError("slide s.tif: damaged there")
            yield reader


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_jpeg_pyramid(tmp_path / "s.tif", textured_pyramid(), mpp=(0.25, 0.25))


def test_a_tile_that_many_want_is_made_once_and_then_kept(slide):
    collection = OneSlide([slide])
    pixels = Pixels(collection, threads=4, cache_mb=1)

    async def many() -> list[bytes]:
        await pixels.slide("s.tif")
        collection.used = 0
        first = await asyncio.gather(*(pixels.tile("s.tif", 11, 1, 1) for _ in range(12)))
        return [*first, await pixels.tile("s.tif", 11, 1, 1)]

    made = asyncio.run(many())
    assert len(set(made)) == 1
    assert collection.used == 1
    pixels.close()
    collection.close()


def test_who_asked_first_may_leave_and_the_others_get_the_tile(slide):
    collection = OneSlide([slide])
    pixels = Pixels(collection, threads=2, cache_mb=1)

    async def one_leaves() -> bytes:
        first = asyncio.ensure_future(pixels.tile("s.tif", 11, 0, 0))
        second = asyncio.ensure_future(pixels.tile("s.tif", 11, 0, 0))
        await asyncio.sleep(0.02)
        first.cancel()
        return await second

    assert asyncio.run(one_leaves()).startswith(b"\xff\xd8")
    pixels.close()
    collection.close()


def test_a_failure_is_told_to_all_and_not_kept(slide):
    collection = OneSlide([slide])
    pixels = Pixels(collection, threads=2, cache_mb=1)

    async def fails_then_works() -> bytes:
        await pixels.slide("s.tif")
        collection.broken = True
        both = await asyncio.gather(*(pixels.tile("s.tif", 11, 0, 1) for _ in range(2)), return_exceptions=True)
        assert [type(error) for error in both] == [RegionReadError] * 2
        collection.broken = False
        return await pixels.tile("s.tif", 11, 0, 1)

    assert asyncio.run(fails_then_works()).startswith(b"\xff\xd8")
    pixels.close()
    collection.close()


def test_encoding_takes_any_view_of_pixels():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    assert encoded(pixels[::2, ::-1]).startswith(b"\xff\xd8")


def test_an_answer_on_a_kept_connection_does_not_wait_for_an_acknowledgement(slide, tmp_path):
    library = tmp_path / "library.js"
    library.write_text("//")
    with served(SlideFiles([slide]), library) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        took = []
        for _ in range(30):
            began = time.monotonic()
            connection.request("GET", "/slides/s.tif/dz/11/1_1.jpg")
            assert connection.getresponse().read().startswith(b"\xff\xd8")
            took.append(time.monotonic() - began)
        connection.close()
    assert statistics.median(took) < 0.02  # without TCP_NODELAY it is 40 ms
