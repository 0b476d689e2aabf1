"""The stream: every patch once, in order, in bounded memory, and a clean stop."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.cohort import PATCH_PX, textured_pixels, textured_slide
from tests.pyramids import HEIGHT, WIDTH, textured_pyramid, write_jpeg_pyramid
from wsi_ips.errors import RegionReadError, SlideError
from wsi_ips.geometry import Point, Scale, Size
from wsi_ips.slides import ArrayReader, SlidePool, TileCache, open_slide
from wsi_ips.tiles.index import IndexOrigin, TileRules, build_index
from wsi_ips.tiles.stream import PatchChunk, PatchStream, SlideTiles, read_tiles
from wsi_ips.tissue.mask import TissueMask


def requests(count: int = 3) -> list[SlideTiles]:
    slides = [textured_slide(f"s{i}", label=i % 2, seed=i).at_slot(i) for i in range(count)]
    slides[1] = slides[1].only(np.array([9, 2, 5], np.int32))
    return slides


def collect(slides, **settings):
    defaults = {"chunk_size": 8, "readers": 2, "prefetch_chunks": 1}
    with PatchStream(slides, **(defaults | settings)) as stream:
        return [PatchChunk(*(part.copy() for part in chunk)) for chunk in stream]  # their memory is used again


def reading_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("wsi-ips-read")]


@pytest.mark.parametrize("chunk_size", [1, 5, 8, 1000])
@pytest.mark.parametrize("readers", [1, 4])
def test_every_tile_once_in_the_order_of_the_request(chunk_size, readers):
    slides = requests()
    chunks = collect(slides, chunk_size=chunk_size, readers=readers)
    found = [(int(s), int(t)) for c in chunks for s, t in zip(c.slot, c.tile, strict=True)]
    assert found == [(r.slot, int(t)) for r in slides for t in r.wanted]
    assert all(len(c.tile) == chunk_size for c in chunks[:-1])


def test_a_patch_is_the_pixels_at_its_place():
    slide = requests()[0]
    source = textured_pixels(label=0, seed=0)
    for chunk in collect([slide]):
        for pixels, tile in zip(chunk.pixels, chunk.tile, strict=True):
            x, y = slide.index.x[tile], slide.index.y[tile]
            np.testing.assert_array_equal(pixels, source[y : y + PATCH_PX, x : x + PATCH_PX])


def test_chunks_span_slides():
    assert any(len(np.unique(chunk.slot)) > 1 for chunk in collect(requests()))


def test_read_tiles_gives_the_wanted_order():
    slide = requests()[0]
    both = read_tiles(slide.only(np.array([7, 1], np.int32)))
    np.testing.assert_array_equal(both[::-1], read_tiles(slide.only(np.array([1, 7], np.int32))))


def test_stopping_in_the_middle_leaves_no_thread_and_closes_the_slides():
    readers: list[ArrayReader] = []
    slide = textured_slide("s", label=0, seed=0)

    def opened() -> ArrayReader:
        readers.append(slide.open())
        return readers[-1]

    endless = SlideTiles(0, "s", slide.index, opened, np.zeros(10_000, np.int32))
    with PatchStream([endless], chunk_size=8, readers=3, prefetch_chunks=2) as stream:
        next(iter(stream))
    assert reading_threads() == []
    assert readers[0]._closed


def test_only_a_bounded_number_of_patches_is_read_ahead():
    read = 0
    slide = textured_slide("s", label=0, seed=0)

    class Counting(ArrayReader):
        def read_region(self, *where):
            nonlocal read
            read += 1
            return super().read_region(*where)

    def opened() -> ArrayReader:
        return Counting([textured_pixels(label=0, seed=0)], Scale(0.5, 0.5))

    long = SlideTiles(0, "s", slide.index, opened, np.zeros(20_000, np.int32))
    with PatchStream([long], chunk_size=64, readers=2, prefetch_chunks=2) as stream:
        chunks = iter(stream)
        for taken in range(1, 20):
            next(chunks)
            stream._pool.submit(lambda: None).result()
            assert read <= 64 * (taken + 2 + 1) + 2 * 32


def test_a_tile_that_cannot_be_read_names_slide_tile_and_place():
    slide = textured_slide("bad one", label=0, seed=0)

    class Damaged(ArrayReader):
        def read_region(self, location_px0, level, size_px):
            if location_px0.x > 100:
                raise RegionReadError("slide x: the file is damaged there")
            return super().read_region(location_px0, level, size_px)

    broken = SlideTiles(
        0, "bad one", slide.index, lambda: Damaged([textured_pixels(label=0, seed=0)], Scale(0.5, 0.5)), None
    )
    with pytest.raises(RegionReadError, match=r"slide bad one: tile 4 \(level-0 x 128, y 0") as caught:
        collect([broken])
    assert caught.value.slide_id == "bad one"
    assert reading_threads() == []


def test_a_file_that_changed_since_tiling_is_refused():
    slide = textured_slide("s", label=0, seed=0)
    other = SlideTiles(
        0, "s", slide.index, lambda: ArrayReader([np.zeros((64, 96, 3), np.uint8)], Scale(0.5, 0.5)), None
    )
    with pytest.raises(SlideError, match="wsi-ips tile"):
        collect([other])


def test_chunks_go_round_in_the_same_memory():
    slide = textured_slide("s", label=0, seed=0)
    long = slide.only(np.zeros(400, np.int32))
    with PatchStream([long], chunk_size=8, readers=2, prefetch_chunks=2) as stream:
        places = {chunk.pixels.__array_interface__["data"][0] for chunk in stream}
    assert len(places) <= 3


def test_a_chunk_stays_while_it_is_held():
    slide = textured_slide("s", label=0, seed=0)
    long = slide.only(np.arange(28, dtype=np.int32).repeat(3))
    with PatchStream([long], chunk_size=4, readers=3, prefetch_chunks=2, held_chunks=2) as stream:
        before = None
        for chunk in stream:
            if before is not None:
                held, copy = before
                time.sleep(0.002)  # give the threads a chance to do wrong
                np.testing.assert_array_equal(held.pixels, copy)
            before = (chunk, chunk.pixels.copy())


def test_small_requests_take_little_memory():
    shapes = []

    def allocate(shape: tuple[int, ...]) -> np.ndarray:
        shapes.append(shape)
        return np.empty(shape, np.uint8)

    with PatchStream(requests()[:1], chunk_size=5000, readers=1, prefetch_chunks=4, allocate=allocate) as stream:
        list(stream)
    assert shapes == [(28, PATCH_PX, PATCH_PX, 3)]


def test_an_empty_request_gives_no_chunk():
    nothing = requests()[0].only(np.empty(0, np.int32))
    assert collect([nothing]) == []
    assert read_tiles(nothing).shape == (0, PATCH_PX, PATCH_PX, 3)


def test_few_slides_are_open_at_a_time_however_many_are_asked_for():
    made: list[ArrayReader] = []
    most = 0
    slide = textured_slide("s", label=0, seed=0)

    def opened() -> ArrayReader:
        nonlocal most
        made.append(slide.open())
        most = max(most, sum(not reader._closed for reader in made))
        return made[-1]

    many = [SlideTiles(n, f"s{n}", slide.index, opened, np.arange(3, dtype=np.int32)) for n in range(200)]
    assert sum(len(chunk.tile) for chunk in collect(many, chunk_size=64, readers=3, prefetch_chunks=2)) == 600
    assert len(made) >= 200
    assert all(reader._closed for reader in made)
    assert most <= 3 + 2  # a slide that lies across two chunks stays open in between


def test_slides_of_a_pool_are_opened_once_for_many_streams():
    pool, made = SlidePool(), []
    slide = textured_slide("s", label=0, seed=0)

    def opener(_: TileCache) -> ArrayReader:
        made.append(slide.open())
        return made[-1]

    pooled = SlideTiles(0, "s", slide.index, lambda: pool.lease("s", opener), None)
    for _ in range(4):
        assert len(collect([pooled])) == 4
        assert len(read_tiles(pooled)) == 28
    assert len(made) == 1
    pool.close()
    assert made[0]._closed


def test_a_slow_slide_does_not_hold_up_the_end():
    slide = textured_slide("s", label=0, seed=0)

    class Slow(ArrayReader):
        def read_region(self, *where):
            time.sleep(0.02)
            return super().read_region(*where)

    slow = SlideTiles(
        0,
        "s",
        slide.index,
        lambda: Slow([textured_pixels(label=0, seed=0)], Scale(0.5, 0.5)),
        np.zeros(10_000, np.int32),
    )
    with PatchStream([slow], chunk_size=64, readers=2, prefetch_chunks=4) as stream:
        next(iter(stream))
        began = time.monotonic()
    assert time.monotonic() - began < 0.3  # one patch per thread at most, not the 32 of a run
    assert reading_threads() == []


def test_patches_of_two_sizes_do_not_go_into_one_stream():
    slide = textured_slide("s", label=0, seed=0)
    other = replace(slide.index, plan=replace(slide.index.plan, patch_size=Size(16, 16)))
    with pytest.raises(ValueError, match="one size"):
        PatchStream([slide, replace(slide, index=other)], chunk_size=8, readers=1, prefetch_chunks=1)


@pytest.mark.parametrize("readers", [1, 4])
def test_a_real_file_streams_the_pixels_of_openslide(tmp_path, readers):
    path = write_jpeg_pyramid(tmp_path / "s.tif", textured_pyramid(), quality=80)
    whole = open_slide(path, reader="openslide").read_region(Point(0, 0), 0, Size(WIDTH, HEIGHT)).astype(int)
    with open_slide(path) as reader:
        info = reader.info
    mask = TissueMask(np.ones((4, 4), bool), Scale(WIDTH / 4, HEIGHT / 4), 0.0, "all")
    index = build_index(
        info,
        mask,
        TileRules(0.255, 50, 43, 0.1),
        IndexOrigin("s"),
    )
    pool = SlidePool(cache_mb=2)
    request = SlideTiles(0, "s", index, lambda: pool.lease("s", lambda cache: open_slide(path, cache=cache)), None)
    seen = 0
    for chunk in collect([request], chunk_size=70, readers=readers, prefetch_chunks=2):
        for pixels, tile in zip(chunk.pixels, chunk.tile, strict=True):
            x, y = int(index.x[tile]), int(index.y[tile])
            assert np.abs(whole[y : y + 50, x : x + 50] - pixels).max() <= 2
            seen += 1
    assert seen == len(index) > 300
