"""The direct path gives the pixels of the reader it replaces, decodes no tile twice, and knows where it ends."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pyramids import HEIGHT, TILE_HEIGHT, TILE_WIDTH, WIDTH, textured_pyramid, write_jpeg_pyramid, write_pyramid
from wsi_ips.errors import RegionReadError, UnsupportedPixelsError, UnsupportedSlideError
from wsi_ips.geometry import Point, ReadPlan, Scale, Size
from wsi_ips.slides import TileCache, direct_reader, open_slide, read_patch
from wsi_ips.slides.direct_reader import DirectReader
from wsi_ips.slides.patch import area_average

LAYOUTS = {
    "ycbcr": {},
    "rgb": {"components": "rgb"},
    "ycbcr, shared tables": {"shared_tables": True},
    "rgb, shared tables": {"components": "rgb", "shared_tables": True},
    "aperio": {"shared_tables": True, "description": "Aperio Image Library\n1031x773|MPP = 0.25"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jpeg")


def slide(folder: Path, layout: str) -> Path:
    path = folder / f"{layout.replace(', ', '_').replace(' ', '_')}.tif"
    if not path.exists():
        write_jpeg_pyramid(path, textured_pyramid(), quality=80, **LAYOUTS[layout])  # type: ignore[arg-type]
    return path


def differences(path: Path, at: Point, level: int, size: Size) -> np.ndarray:
    with open_slide(path, reader="direct") as ours, open_slide(path, reader="openslide") as theirs:
        return np.abs(ours.read_region(at, level, size).astype(int) - theirs.read_region(at, level, size))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_levels_are_those_of_openslide(folder, layout):
    path = slide(folder, layout)
    with open_slide(path) as reader:
        assert isinstance(reader, DirectReader)
        assert reader.info.reader == "openslide"
        assert reader.info.pixels_by.startswith("direct: JPEG tiles of 128 x 112 px")
        sizes = reader.info.level_sizes
    for level, size in enumerate(sizes):
        assert differences(path, Point(0, 0), level, size).max() <= 2


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_region_of_level_0_is_that_of_openslide(folder, data):
    width, height = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 300))
    at = Point(data.draw(st.integers(0, WIDTH - width)), data.draw(st.integers(0, HEIGHT - height)))
    assert differences(slide(folder, "ycbcr"), at, 0, Size(width, height)).max() <= 2


def test_real_slides_are_those_of_their_own_reader_on_every_level(real_data):
    taken = 0
    for path in sorted((real_data / "slides").rglob("*")):
        if path.suffix not in (".svs", ".tif", ".tiff"):
            continue
        try:
            ours = open_slide(path, reader="direct")
        except (UnsupportedSlideError, RegionReadError):
            continue
        taken += 1
        with ours, open_slide(path, reader=ours.info.reader) as theirs:  # type: ignore[arg-type]
            for level, size in enumerate(ours.info.level_sizes):
                part = Size(min(size.width, 2500), min(size.height, 2500))
                difference = np.abs(
                    ours.read_region(Point(0, 0), level, part).astype(int)
                    - theirs.read_region(Point(0, 0), level, part)
                )
                assert difference.max() <= 2, path
                assert difference.mean() < 0.5, path
    assert taken >= 5


def test_an_aperio_slide_with_tiles_without_pixels_is_left_to_openslide(folder):
    path = folder / "gaps.svs"
    write_jpeg_pyramid(
        path, textured_pyramid(), description="Aperio Image Library\n1031x773|MPP = 0.25", missing=(1, 9)
    )
    with open_slide(path) as reader:
        assert reader.info.pixels_by == "openslide: has tiles without pixels, a fault of Aperio's encoder"


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_shrinking_while_decoding_is_near_the_mean_of_the_pixels(folder, factor):
    path = slide(folder, "ycbcr")
    patch = Size(32, 24)
    plan = ReadPlan(0, Scale(1, 1), Size(32 * factor, 24 * factor), patch, 0.25 * factor, Scale(1, 1))
    for at in (Point(0, 0), Point(5 * factor, 3 * factor), Point(256, 224)):
        with open_slide(path, reader="direct") as ours, open_slide(path, reader="openslide") as theirs:
            assert ours.shrinks(at, 0, plan.read_size, factor)
            near = read_patch(ours, at, plan).astype(float)
            mean = area_average(theirs.read_region(at, 0, plan.read_size), patch).astype(float)
        assert np.abs(near - mean).mean() < 6  # this texture is much harsher than tissue
        shifted = np.abs(near[:, 1:] - mean[:, :-1]).mean()
        assert np.abs(near - mean).mean() < shifted / 2  # a pixel off would be seen


def test_where_it_cannot_shrink_it_averages(folder):
    plan = ReadPlan(0, Scale(1, 1), Size(64, 64), Size(32, 32), 0.5, Scale(0.5, 0.5))
    odd = Point(33, 20)
    with open_slide(slide(folder, "ycbcr"), reader="direct") as reader:
        assert not reader.shrinks(odd, 0, plan.read_size, 2)
        expected = area_average(reader.read_region(odd, 0, plan.read_size), plan.patch_size)
        np.testing.assert_array_equal(read_patch(reader, odd, plan), expected)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    count = [0]
    plain = direct_reader.decode

    def counting(*arguments, **named):
        count[0] += 1
        return plain(*arguments, **named)

    monkeypatch.setattr(direct_reader, "decode", counting)
    return count


def test_a_full_grid_off_the_tiles_decodes_each_tile_once(folder, decoded):
    cache = TileCache()
    side = 50
    plan = ReadPlan(0, Scale(1, 1), Size(side, side), Size(side, side), 0.25, Scale(0.25, 0.25))
    with open_slide(slide(folder, "ycbcr"), reader="direct", cache=cache) as reader:
        decoded[0] = 0
        for y in range(0, HEIGHT - side, side):
            for x in range(0, WIDTH - side, side):
                read_patch(reader, Point(x, y), plan)
        tiles = -(-WIDTH // TILE_WIDTH) * -(-HEIGHT // TILE_HEIGHT)
        assert decoded[0] <= tiles
        assert cache.bytes_held <= (decoded[0] + 2) * TILE_WIDTH * TILE_HEIGHT * 3
    assert cache.bytes_held <= 8 * 2**20


def test_a_patch_that_is_a_stored_tile_is_decoded_into_the_callers_memory(folder, decoded):
    cache = TileCache()
    size = Size(TILE_WIDTH, TILE_HEIGHT)
    plan = ReadPlan(0, Scale(1, 1), size, size, 0.25, Scale(0.25, 0.25))
    out = np.zeros((TILE_HEIGHT, TILE_WIDTH, 3), np.uint8)
    with open_slide(slide(folder, "ycbcr"), reader="direct", cache=cache) as reader:
        held, decoded[0] = cache.bytes_held, 0
        assert read_patch(reader, Point(TILE_WIDTH, TILE_HEIGHT), plan, out) is out
        assert (decoded[0], cache.bytes_held) == (1, held)
    assert out.any()


def test_threads_get_what_one_thread_gets(folder):
    rng = np.random.default_rng(3)
    places = [Point(int(rng.integers(WIDTH - 90)), int(rng.integers(HEIGHT - 70))) for _ in range(300)]
    with open_slide(slide(folder, "ycbcr"), cache=TileCache(40 * TILE_WIDTH * TILE_HEIGHT * 3)) as reader:

        def read(at: Point) -> np.ndarray:
            return reader.read_region(at, 0, Size(90, 70))

        serial = [read(at) for at in places]
        with ThreadPoolExecutor(6) as pool:
            for one, other in zip(serial, pool.map(read, places), strict=True):
                np.testing.assert_array_equal(one, other)


def damaged(folder: Path, name: str, change) -> Path:
    """Level 0 of a good slide with the bytes of its tile 10 changed."""
    import tifffile

    data = bytearray(slide(folder, "ycbcr").read_bytes())
    with tifffile.TiffFile(slide(folder, "ycbcr")) as tiff:
        page = tiff.pages.first
        start, count = page.dataoffsets[10], page.databytecounts[10]
    data[start : start + count] = change(bytes(data[start : start + count]))
    path = folder / name
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda stream: stream[: len(stream) // 2] + bytes(len(stream) - len(stream) // 2),
        lambda stream: bytes(len(stream)),
        lambda stream: stream[:200] + b"\xff\xd9" * ((len(stream) - 200) // 2) + bytes(len(stream) % 2),
    ],
    ids=["half of it zero", "all zero", "ends early"],
)
def test_a_damaged_tile_is_an_error_that_names_slide_and_place_never_grey_pixels(folder, change):
    path = damaged(folder, "damaged.tif", change)
    column, row = 10 % -(-WIDTH // TILE_WIDTH), 10 // -(-WIDTH // TILE_WIDTH)
    with open_slide(path, reader="direct") as reader:
        reader.read_region(Point(0, 0), 0, Size(100, 100))
        with pytest.raises(
            RegionReadError, match=r"slide damaged\.tif: cannot read 40 x 40 px of level 0.*damaged there"
        ):
            reader.read_region(Point(column * TILE_WIDTH, row * TILE_HEIGHT), 0, Size(40, 40))


def test_a_file_that_was_cut_short_is_an_error(folder):
    path = folder / "short.tif"
    data = slide(folder, "ycbcr").read_bytes()
    path.write_bytes(data)
    with open_slide(path, reader="direct") as reader:
        with path.open("r+b") as file:
            file.truncate(len(data) // 3)
        with pytest.raises(RegionReadError, match="beyond the end of the file"):
            reader.read_region(Point(0, 0), 0, Size(WIDTH, HEIGHT))


def test_other_compressions_are_read_by_openslide_and_it_says_why(folder):
    path = write_pyramid(folder / "deflate.tif", textured_pyramid())
    with open_slide(path) as reader:
        assert re.fullmatch(r"openslide: level 0 is (ADOBE )?DEFLATE, not JPEG", reader.info.pixels_by)
    with pytest.raises(UnsupportedSlideError, match=r"deflate\.tif: level 0 is (ADOBE )?DEFLATE, not JPEG"):
        open_slide(path, reader="direct")


def test_a_file_that_contradicts_itself_is_refused_by_every_reader(folder):
    """The directory says YCbCr, the stream says RGB: whoever believes the stream sees other colours than OpenSlide."""
    from tests import pyramids

    path = folder / "liar.tif"
    plain = pyramids.encode
    try:
        pyramids.encode = lambda pixels, *, rgb, quality: plain(pixels, rgb=True, quality=quality)  # type: ignore[assignment]
        write_jpeg_pyramid(path, textured_pyramid())
    finally:
        pyramids.encode = plain  # type: ignore[assignment]
    for reader in ("auto", "direct", "openslide", "tiffslide"):
        with pytest.raises(UnsupportedPixelsError, match="its directory says YCbCr, its JPEG streams say RGB"):
            open_slide(path, reader=reader)


PHILIPS = """<?xml version="1.0" encoding="UTF-8" ?>
<DataObject ObjectType="DPUfsImport"><Attribute Name="DICOM_MANUFACTURER" Group="0x0008" Element="0x0070"
PMSVR="IString">PHILIPS</Attribute><Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003"
PMSVR="IDataObjectArray"><Array><DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE"
Group="0x301D" Element="0x1004" PMSVR="IString">WSI</Attribute><Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"
Group="0x1001" Element="0x8B01" PMSVR="IDataObjectArray"><Array>{levels}</Array></Attribute></DataObject></Array>
</Attribute></DataObject>"""
PHILIPS_LEVEL = """<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028"
Element="0x0030" PMSVR="IDoubleArray">&quot;{mm:.9f}&quot; &quot;{mm:.9f}&quot;</Attribute></DataObject>"""


def write_philips(path: Path, *, missing: tuple[int, ...] = ()) -> Path:
    """The form of CAMELYON: OpenSlide knows the true sizes from the XML, the directories are larger."""
    pixels = np.pad(textured_pyramid()[0], [(0, -HEIGHT % TILE_HEIGHT), (0, -WIDTH % TILE_WIDTH), (0, 0)], "edge")
    levels = [pixels, pixels[::2, ::2], pixels[::4, ::4]]
    spacing = "".join(PHILIPS_LEVEL.format(mm=0.00025 * 2**n) for n in range(3))
    return write_jpeg_pyramid(
        path,
        levels,
        description=PHILIPS.format(levels=spacing),
        padded=True,
        quality=80,
        software="Philips DP v1.0",
        missing=missing,
    )


@pytest.mark.parametrize("missing", [(), (1, 9, 20)], ids=["whole", "with glass left out"])
def test_philips_tiff_with_levels_padded_to_whole_tiles(folder, missing):
    path = write_philips(folder / f"philips{len(missing)}.tif", missing=missing)
    with open_slide(path) as reader:
        assert reader.info.properties["openslide.vendor"] == "philips"
        assert reader.info.pixels_by.startswith("direct")
        sizes = reader.info.level_sizes
        if missing:
            gap = reader.read_region(Point(TILE_WIDTH, 0), 0, Size(TILE_WIDTH, TILE_HEIGHT))
            assert (gap == 255).all()
    assert sizes[2] == Size(288, 196)  # 384 x 224 in the file
    for level, size in enumerate(sizes):
        assert differences(path, Point(0, 0), level, size).max() <= 2


def test_a_reader_that_nobody_closed_leaves_no_tiles_to_the_next(folder):
    """The cache tells slides apart even where one takes the place of another in memory."""
    cache, side = TileCache(), Size(90, 70)
    other = write_jpeg_pyramid(folder / "other.tif", textured_pyramid(seed=5), quality=80)
    for path in [slide(folder, "ycbcr"), other] * 5:
        with open_slide(path, reader="openslide") as plain:
            expected = plain.read_region(Point(100, 90), 0, side).astype(int)
        reader = open_slide(path, reader="direct", cache=cache)
        assert np.abs(reader.read_region(Point(100, 90), 0, side) - expected).max() <= 2
        reader._source.close()
        del reader
