"""What every slide reader promises, run on every reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.pyramids import HEIGHT, MPP, WIDTH, gradient_pyramid, write_jpeg_pyramid, write_pyramid
from wsi_ips.errors import RegionReadError
from wsi_ips.geometry import Box, Point, Scale, Size, plan_read
from wsi_ips.slides import ArrayReader, SlideReader, open_slide, read_area, read_patch, read_thumbnail
from wsi_ips.slides.direct_reader import DirectReader
from wsi_ips.slides.source import LocalFile


@pytest.fixture(params=["openslide", "tiffslide", "array", "direct", "direct over tiffslide"])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SlideReader]:
    levels = gradient_pyramid()
    if request.param == "array":
        opened: SlideReader = ArrayReader(levels, Scale(*MPP))
    elif request.param == "direct":
        opened = open_slide(write_jpeg_pyramid(tmp_path / "ugly.tif", levels, components="rgb"), reader="direct")
    elif request.param == "direct over tiffslide":
        path = write_jpeg_pyramid(tmp_path / "ugly.tif", levels, components="rgb")
        base = open_slide(path, reader="tiffslide")
        opened = DirectReader(base, LocalFile(path))
    else:
        opened = open_slide(write_pyramid(tmp_path / "ugly.tif", levels), reader=request.param)
    with opened:
        yield opened


def test_is_a_slide_reader(reader):
    assert isinstance(reader, SlideReader)


def test_states_sizes_scale_and_bounds(reader):
    info = reader.info
    assert info.level_sizes == (Size(1031, 773), Size(515, 386), Size(257, 193))
    assert info.mpp == pytest.approx(MPP, rel=1e-4)
    assert info.bounds == Box(0, 0, WIDTH, HEIGHT)
    assert info.pyramid.downsample(2) == pytest.approx((1031 / 257, 773 / 193))


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("at", [Point(0, 0), Point(300, 100), Point(613, 407)])
def test_the_region_is_where_it_should_be(reader, level, at):
    pixels = reader.read_region(at, level, Size(33, 21))
    assert pixels.shape == (21, 33, 3)
    assert pixels.dtype == np.uint8
    downsample = reader.info.pyramid.downsample(level)
    middle_x = at.x + 16.5 * downsample.x
    middle_y = at.y + 10.5 * downsample.y
    # One grey level is eight level-0 pixels; a reader may be off by one pixel of the level read.
    assert float(pixels[10, 16, 0]) * 8 == pytest.approx(middle_x, abs=8 + downsample.x)
    assert float(pixels[10, 16, 1]) * 8 == pytest.approx(middle_y, abs=8 + downsample.y)


def test_the_four_corners_are_not_swapped(reader):
    size = Size(5, 5)
    corners = [Point(0, 0), Point(WIDTH - 5, 0), Point(0, HEIGHT - 5), Point(WIDTH - 5, HEIGHT - 5)]
    means = [reader.read_region(corner, 0, size).mean((0, 1)) for corner in corners]
    assert means[0][0] < 2
    assert means[0][1] < 2
    assert means[1][0] > 120 > means[1][1]
    assert means[2][1] > 90 > means[2][0]
    assert means[3][0] > 120
    assert means[3][1] > 90


@pytest.mark.parametrize(
    ("at", "level", "size"),
    [
        (Point(-1, 0), 0, Size(8, 8)),
        (Point(WIDTH - 7, 0), 0, Size(8, 8)),
        (Point(0, HEIGHT - 7), 0, Size(8, 8)),
        (Point(0, 0), 2, Size(258, 8)),
        (Point(0, 0), 3, Size(8, 8)),
        (Point(0, 0), -1, Size(8, 8)),
        (Point(0, 0), 0, Size(0, 8)),
    ],
)
def test_a_region_that_leaves_the_slide_is_an_error_never_white(reader, at, level, size):
    with pytest.raises(RegionReadError, match=reader.info.name):
        reader.read_region(at, level, size)


def test_reading_after_close_is_an_error(reader):
    reader.close()
    with pytest.raises(RegionReadError, match="closed"):
        reader.read_region(Point(0, 0), 0, Size(4, 4))


def test_pixels_belong_to_the_caller(reader):
    first = reader.read_region(Point(10, 10), 0, Size(6, 4))
    first[:] = 0
    assert reader.read_region(Point(10, 10), 0, Size(6, 4)).any()


def test_a_resampled_patch_shows_its_footprint(reader):
    plan = plan_read(reader.info.pyramid, target_mpp=0.8, patch_size=Size(40, 40))
    assert plan.resamples
    patch = read_patch(reader, Point(200, 120), plan)
    assert patch.shape == (40, 40, 3)
    middle = (200 + plan.footprint_px0.x / 2, 120 + plan.footprint_px0.y / 2)
    assert patch[19:21, 19:21, 0].mean() * 8 == pytest.approx(middle[0], abs=10)
    assert patch[19:21, 19:21, 1].mean() * 8 == pytest.approx(middle[1], abs=10)


def test_a_thumbnail_covers_the_whole_slide_at_its_scale(reader):
    thumbnail, mpp = read_thumbnail(reader, 3.0)
    assert thumbnail.shape[:2] == (round(HEIGHT * MPP[1] / 3.0), round(WIDTH * MPP[0] / 3.0))
    assert mpp.x * thumbnail.shape[1] == pytest.approx(WIDTH * MPP[0], rel=1e-4)
    assert mpp.y * thumbnail.shape[0] == pytest.approx(HEIGHT * MPP[1], rel=1e-4)
    x = (np.arange(thumbnail.shape[1]) + 0.5) * WIDTH / thumbnail.shape[1]
    np.testing.assert_allclose(thumbnail[5, :, 0], x / 8, atol=1.6)


def test_an_area_is_cut_exactly(reader):
    area = Box(101, 57, 611, 403)
    pixels, _ = read_area(reader, area, 2.0)
    x = area.x + (np.arange(pixels.shape[1]) + 0.5) * area.width / pixels.shape[1]
    y = area.y + (np.arange(pixels.shape[0]) + 0.5) * area.height / pixels.shape[0]
    np.testing.assert_allclose(pixels[3, :, 0], x / 8, atol=1.6)
    np.testing.assert_allclose(pixels[:, 3, 1], y / 8, atol=1.6)


def test_a_thumbnail_is_never_upsampled(reader):
    thumbnail, mpp = read_thumbnail(reader, 0.01)
    assert thumbnail.shape[:2] == (HEIGHT, WIDTH)
    assert mpp == pytest.approx(reader.info.mpp)
