"""A moved grid: whole patch pixels, inside the scanned part, and the pixels that lie there, with every reader."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pyramids import gradient_level, textured_pyramid, write_jpeg_pyramid, write_pyramid
from wsi_ips.geometry import Box, Point, Scale, Size
from wsi_ips.slides import ArrayReader, open_slide, read_patch
from wsi_ips.slides.patch import area_average
from wsi_ips.tiles.index import IndexOrigin, TileIndex, TileRules, build_index
from wsi_ips.tiles.stream import SlideTiles
from wsi_ips.tissue.mask import TissueMask

BOUNDS = Box(160, 90, 1200, 800)


def index_over(reader, *, mpp: float, patch_px: int) -> TileIndex:
    width, height = reader.info.size_px0
    mask = TissueMask(np.ones((20, 30), bool), Scale(width / 30, height / 20), 0.0, "all")
    return build_index(reader.info, mask, TileRules(mpp, patch_px, patch_px, 0.5), IndexOrigin("s", "s", "f"))


@pytest.mark.parametrize("offset", [(0, 0), (5, -7), (-16, 16), (16, 16), (-16, -16)])
def test_tiles_move_by_whole_patch_pixels_and_stay_inside(offset):
    with ArrayReader([gradient_level(1500, 1000)], Scale(0.25, 0.25), bounds=BOUNDS) as reader:
        index = index_over(reader, mpp=0.5, patch_px=32)
    moved = index.moved(offset)
    assert len(moved) == len(index)
    assert moved.x.dtype == moved.y.dtype == np.int32
    for before, after, by, start, end in (
        (index.x, moved.x, offset[0], BOUNDS.x, BOUNDS.right),
        (index.y, moved.y, offset[1], BOUNDS.y, BOUNDS.bottom),
    ):
        assert after.min() >= start
        assert after.max() + 64 <= end
        free = (before + 2 * by >= start) & (before + 2 * by + 64 <= end)
        assert free.any()
        np.testing.assert_array_equal(after[free], before[free] + 2 * by)
        if by == 0:
            np.testing.assert_array_equal(after, before)
    for name in ("tissue_fraction", "flags"):
        assert getattr(moved, name) is getattr(index, name)


def test_an_empty_index_moves():
    with ArrayReader([gradient_level(20, 20)], Scale(0.25, 0.25)) as reader:
        index = index_over(reader, mpp=0.5, patch_px=32)
    assert len(index.moved((3, 3))) == 0


@pytest.mark.parametrize("name", ["openslide", "tiffslide", "direct"])
@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.7])
def test_every_reader_gives_the_pixels_of_the_moved_place(tmp_path, name, mpp):
    levels = textured_pyramid()
    path = tmp_path / "s.tif"
    if name == "direct":
        write_jpeg_pyramid(path, levels[:1], components="rgb", mpp=(0.25, 0.25))
    else:
        write_pyramid(path, levels[:1], mpp=(0.25, 0.25))
    with open_slide(path, reader=name) as reader:
        index = index_over(reader, mpp=mpp, patch_px=32).moved((11, -6))
        plan = index.plan
        tiles = SlideTiles(0, "s", index, lambda: open_slide(path, reader=name), None).read()
        for tile in (0, len(index) // 2, len(index) - 1):
            x, y = int(index.x[tile]), int(index.y[tile])
            shown = levels[0][y : y + plan.read_size.height, x : x + plan.read_size.width]
            expected = area_average(shown, Size(32, 32)).astype(int)
            assert np.abs(tiles[tile] - expected).mean() < (2 if name == "direct" else 0.6)


def test_the_direct_reader_still_shrinks_while_it_decodes(tmp_path):
    """A grid that moved by less than a patch pixel would have to be decoded at full size and averaged."""
    path = write_jpeg_pyramid(tmp_path / "s.tif", textured_pyramid()[:1], components="rgb", mpp=(0.25, 0.25))
    with open_slide(path, reader="direct") as reader:
        index = index_over(reader, mpp=0.5, patch_px=32).moved((11, -6))
        inside = [t for t in range(len(index)) if index.y[t] > 0 and index.x[t] + 64 < reader.info.size_px0.width - 32]
        called: list[int] = []
        plain = reader.read_into
        reader.read_into = lambda *given, factor=1: (called.append(factor), plain(*given, factor=factor))
        for tile in inside[:20]:
            read_patch(reader, Point(int(index.x[tile]), int(index.y[tile])), index.plan)
    assert called == [2] * 20
