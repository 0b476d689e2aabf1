"""Deep Zoom tiles lie where level-0 coordinates say, for every reader and every odd pyramid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
from openslide.deepzoom import DeepZoomGenerator

from tests.pyramids import gradient_level, gradient_pyramid, textured_pyramid, write_jpeg_pyramid, write_pyramid
from wsi_ips.geometry import Box, Scale
from wsi_ips.slides import ArrayReader, DirectReader, SlideReader, open_slide
from wsi_ips.viewer.deepzoom import TILE_PX, DeepZoomTiles, viewing_downsample


def where(
    level: int, tiles: DeepZoomTiles, column: int, row: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Level-0 positions of the middles of a tile's columns and rows."""
    step = 2 ** (tiles.levels - 1 - level)
    x = (column * TILE_PX + np.arange(shape[1]) + 0.5) * step
    y = (row * TILE_PX + np.arange(shape[0]) + 0.5) * step
    return x, y


def addresses(tiles: DeepZoomTiles, level: int) -> list[tuple[int, int]]:
    return [(c, r) for c in range(8) for r in range(8) if tiles.has(level, c, r)]


def check_places(reader: SlideReader, *, tolerance_px0: float) -> None:
    """On slides whose red grows with x / 8 and green with y / 8, pixels say where they are."""
    tiles = DeepZoomTiles(reader.info)
    for level in range(max(0, tiles.levels - 5), tiles.levels):
        step = 2 ** (tiles.levels - 1 - level)
        for column, row in addresses(tiles, level):
            pixels = tiles.render(reader, level, column, row).astype(float)
            x, y = where(level, tiles, column, row, pixels.shape[:2])
            inside_x = x < reader.info.size_px0.width - 2 * step  # the last ones are cut or filled up
            inside_y = y < reader.info.size_px0.height - 2 * step
            allowed = tolerance_px0 + step + 8  # a grey level is eight pixels
            assert np.abs(np.median(pixels[..., 0], 0)[inside_x] * 8 + 4 - x[inside_x]).max(initial=0) <= allowed
            assert np.abs(np.median(pixels[..., 1], 1)[inside_y] * 8 + 4 - y[inside_y]).max(initial=0) <= allowed


@pytest.mark.parametrize("reader_name", ["openslide", "tiffslide"])
def test_tiles_lie_in_place(tmp_path, reader_name):
    path = write_pyramid(tmp_path / "slide.tif", gradient_pyramid())
    with open_slide(path, reader=reader_name) as reader:
        check_places(reader, tolerance_px0=4)


def test_tiles_that_are_read_directly_lie_in_place(tmp_path):
    path = write_jpeg_pyramid(tmp_path / "slide.tif", gradient_pyramid(), mpp=(0.25, 0.25))
    with open_slide(path) as reader:
        assert isinstance(reader, DirectReader)
        check_places(reader, tolerance_px0=12)


def test_a_level_between_those_of_the_file_lies_in_place():
    full = gradient_level(1403, 911)
    third = gradient_level(1403 // 3, 911 // 3, 3, 3)
    with ArrayReader([full, third], Scale(0.5, 0.5), name="thirds") as reader:
        check_places(reader, tolerance_px0=6)


def test_a_scanned_part_off_the_corner_is_shown_where_it_is():
    pixels = gradient_level(900, 700)
    with ArrayReader([pixels], Scale(0.5, 0.5), name="bounds", bounds=Box(300, 200, 400, 300)) as reader:
        check_places(reader, tolerance_px0=1)
        tiles = DeepZoomTiles(reader.info)
        assert tiles.render(reader, tiles.levels - 1, 0, 0).shape == (256, 256, 3)


def blocks(pixels: np.ndarray, side: int = 8) -> np.ndarray:
    """Means of squares: what two ways of resampling fine noise have in common."""
    height, width = (length // side * side for length in pixels.shape[:2])
    return pixels[:height, :width].reshape(height // side, side, width // side, side, 3).mean((1, 3))


@pytest.mark.parametrize("name", ["auto", "openslide"])
def test_pixels_are_those_of_openslides_own_generator(tmp_path, name):
    path = write_jpeg_pyramid(tmp_path / "slide.tif", textured_pyramid(), mpp=(0.25, 0.25), quality=90)
    theirs = DeepZoomGenerator(openslide.OpenSlide(path), TILE_PX, overlap=0, limit_bounds=False)
    with open_slide(path, reader=name) as reader:
        tiles = DeepZoomTiles(reader.info)
        assert tiles.levels == theirs.level_count
        level = tiles.levels - 1
        for address in addresses(tiles, level):
            np.testing.assert_allclose(
                tiles.render(reader, level, *address).astype(int), np.asarray(theirs.get_tile(level, address)), atol=3
            )
        for level in range(tiles.levels - 3, tiles.levels - 1):  # resampled another way
            for address in addresses(tiles, level):
                ours, other = tiles.render(reader, level, *address), np.asarray(theirs.get_tile(level, address))
                # At the lower edge OpenSlide's own tile lacks a row: it keeps the aspect of a cut level.
                height, width = min(ours.shape[0], other.shape[0]), min(ours.shape[1], other.shape[1])
                assert max(ours.shape[0] - height, ours.shape[1] - width) <= 1
                difference = ours[:height, :width].astype(float) - other[:height, :width]
                assert min(height, width) < 8 or np.abs(blocks(difference)).mean() < 4


def test_a_level_that_was_only_cut_is_taken_as_exact():
    level0 = np.zeros((703, 1003, 3), np.uint8)
    with ArrayReader([level0, level0[:175, :250], level0[:60, :90]], Scale(0.5, 0.5), name="cut") as reader:
        assert viewing_downsample(reader.info, 0) == 1
        assert viewing_downsample(reader.info, 1) == 4  # 1003 / 250 = 4.012, 703 / 175 = 4.017
        assert viewing_downsample(reader.info, 2) == pytest.approx((1003 / 90 + 703 / 60) / 2)


def test_what_is_no_tile_is_known_to_be_none():
    with ArrayReader([np.zeros((300, 600, 3), np.uint8)], Scale(0.5, 0.5), name="small") as reader:
        tiles = DeepZoomTiles(reader.info)
        top = tiles.levels - 1
        assert [tiles.has(top, *place) for place in ((0, 0), (2, 1), (3, 0), (0, 2), (-1, 0))] == [True, True] + [
            False
        ] * 3
        assert not tiles.has(top + 1, 0, 0)
        assert not tiles.has(-1, 0, 0)
        assert tiles.render(reader, top, 2, 1).shape == (44, 88, 3)
        assert tiles.render(reader, 0, 0, 0).shape == (1, 1, 3)


class Counting(ArrayReader):
    """Counts the pixels that are read."""

    read = 0

    def read_region(self, location_px0, level, size_px):
        self.read += size_px.width * size_px.height
        return super().read_region(location_px0, level, size_px)


def test_a_slide_without_coarse_levels_is_read_once_for_all_overviews():
    pixels = np.tile(np.linspace(0, 255, 9001).astype(np.uint8)[None, :, None], (600, 1, 3))
    with Counting([pixels], Scale(0.5, 0.5), name="long") as reader:
        tiles = DeepZoomTiles(reader.info)
        for level in range(6, tiles.levels - 3):
            step = 2 ** (tiles.levels - 1 - level)
            for address in addresses(tiles, level):
                shown = tiles.render(reader, level, *address)
                x, _ = where(level, tiles, *address, shown.shape[:2])
                expected = np.clip(x, 0, 9000) / 9000 * 255
                # Less than a pixel of the level: the last one is not covered wholly.
                assert np.abs(shown[0, :, 0].astype(float) - expected).max() < 255 * step / 9000 + 2
        assert reader.read == 9001 * 600


def test_real_slides_of_all_readers_are_shown(real_data: Path):
    for name in ("CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs", "OS-1-detail.ome.tif", "w2d_jpeg.dcm"):
        with open_slide(real_data / "slides" / name) as reader:  # no scale is needed
            tiles = DeepZoomTiles(reader.info)
            for level in range(tiles.levels):
                place = addresses(tiles, level)[-1]
                assert tiles.render(reader, level, *place).shape[2] == 3
            whole = next(
                level for level in range(tiles.levels) if tiles.has(level + 1, 1, 0) or level == tiles.levels - 1
            )
            assert tiles.render(reader, whole, 0, 0).std() > 2
