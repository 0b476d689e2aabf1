"""The stream: every patch once, in order, in bounded memory, and a clean stop."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.cohort import PATCH_PX, textured_pixels, textured_slide
from wsi_ips.errors import RegionReadError, SlideError
from wsi_ips.geometry import Scale
from wsi_ips.slides import ArrayReader
from wsi_ips.tiles import PatchChunk, PatchStream, SlideTiles, read_tiles


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
