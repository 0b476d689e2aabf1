"""All readers show the same slide, or refuse it with the true reason; nothing that is missing comes back as pixels."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from benchmarks.mutations import mutate, use
from tests.pyramids import TILE_WIDTH, textured_pyramid, write_jpeg_pyramid, write_pyramid
from wsi_ips.errors import RegionReadError, SlideError, UnsupportedPixelsError, UnsupportedSlideError
from wsi_ips.geometry import Point, Scale, Size
from wsi_ips.slides import open_slide

LEVELS = textured_pyramid()
PIXELS = LEVELS[0]
TIFF = {"compression": "deflate", "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
READERS = ("auto", "openslide", "tiffslide")


CORNER, PART = Point(0, 0), Size(200, 150)


def read(path: Path, reader: str, at: Point = CORNER, size: Size = PART) -> np.ndarray:
    with open_slide(path, reader=reader) as slide:
        return slide.read_region(at, 0, size).astype(int)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("layout", [{"tile": (256, 256)}, {"rowsperstrip": 64}], ids=["tiles", "strips"])
def test_transparent_pixels_are_white_in_every_reader(tmp_path, kind, layout):
    alpha = np.full(PIXELS.shape[:2], 255, np.uint8)
    alpha[:, :100], alpha[:, 100:150] = 0, 128
    share = alpha[..., None] / 255
    stored = np.dstack([np.rint(PIXELS * share).astype(np.uint8) if kind == "assocalpha" else PIXELS, alpha])
    stored[:, :100, :3] = 0
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="rgb", extrasamples=[kind], metadata=None, **layout, **TIFF)
    expected = np.rint(PIXELS * share + 255 * (1 - share))[:150, :200]
    for reader in READERS if "tile" in layout else ("auto", "tiffslide"):
        found = read(path, reader)
        assert (found[:, :100] == 255).all(), reader
        assert np.abs(found - expected).max() <= 2, reader  # OpenSlide multiplies by alpha and divides again


def zero_tag(path: Path, tag: int, entry: int) -> None:
    """Set one entry of a tag of the first directory to zero."""
    with tifffile.TiffFile(path) as tiff:
        found = tiff.pages.first.tags[tag]
        width = {3: 2, 4: 4, 16: 8}[int(found.dtype)]
        start = found.valueoffset + width * entry
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(width))


@pytest.mark.parametrize("layout", ["jpeg tiles", "deflate tiles", "deflate strips"])
def test_a_missing_tile_or_strip_is_an_error_in_every_reader_never_black_or_white(tmp_path, layout):
    path = tmp_path / "gap.tif"
    if layout == "jpeg tiles":
        write_jpeg_pyramid(path, LEVELS, quality=80)
    elif layout == "deflate tiles":
        write_pyramid(path, LEVELS)
    else:
        tifffile.imwrite(path, PIXELS, photometric="rgb", rowsperstrip=64, metadata=None, **TIFF)
    for tag in (279, 273) if layout == "deflate strips" else (325, 324):
        zero_tag(path, tag, 1)
    inside = Point(TILE_WIDTH + 20, 80)
    for reader in READERS if "tiles" in layout else ("auto", "tiffslide"):
        with pytest.raises(SlideError, match="a tile or strip is missing from the file"):
            read(path, reader, inside, Size(20, 20))
        if layout != "jpeg tiles":  # of which the direct path has compared another tile on opening
            rest = read(path, reader, Point(300, 200), Size(64, 64))
            np.testing.assert_array_equal(rest, PIXELS[200:264, 300:364])


@pytest.mark.parametrize("seed", [4, 334])
def test_a_level_whose_table_of_tiles_is_lost_is_an_error_never_black(tmp_path, real_data, seed):
    """Cut where the directory still stands but the values of its tags do not; TiffSlide showed it in black."""
    source = real_data / "slides" / "boxes.tiff"
    way, data = mutate(source, seed)
    assert way == "truncate"
    path = tmp_path / "cut.tiff"
    path.write_bytes(data)
    assert use(path, source)[0] != "differs"
    with open_slide(path, reader="tiffslide") as slide:
        last = len(slide.info.level_sizes) - 1
        with pytest.raises(RegionReadError, match="missing from the file"):
            slide.read_region(Point(0, 0), last, Size(20, 20))


@pytest.mark.parametrize("compression", ["jpeg", "deflate", None])
def test_of_a_file_that_was_cut_short_no_pixel_is_invented(tmp_path, compression):
    whole, path = tmp_path / "whole.tif", tmp_path / "cut.tif"
    tifffile.imwrite(whole, PIXELS, photometric="rgb", tile=(128, 128), compression=compression, metadata=None)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    errors = 0
    for reader in READERS:
        try:
            slide = open_slide(path, reader=reader)
        except SlideError:
            assert reader != "tiffslide"  # it opens such a file
            continue
        with slide, open_slide(whole, reader=reader) as good:
            for at in (Point(x, y) for x in range(0, 900, 100) for y in range(0, 650, 60)):
                try:
                    found = slide.read_region(at, 0, Size(100, 60))
                except RegionReadError:
                    errors += 1
                else:
                    np.testing.assert_array_equal(found, good.read_region(at, 0, Size(100, 60)))
    assert errors > 20


def write_planes(path: Path, names: list[str] | None) -> Path:
    planes = np.ascontiguousarray(np.moveaxis(PIXELS, 2, 0))
    metadata = {"axes": "CYX"} | ({"Channel": {"Name": names}} if names else {})
    tifffile.imwrite(path, planes, ome=True, photometric="minisblack", tile=(256, 256), metadata=metadata, **TIFF)
    return path


def test_red_green_and_blue_planes_are_read(tmp_path):
    named = write_planes(tmp_path / "named.ome.tif", ["Red", "Green", "Blue"])
    np.testing.assert_array_equal(read(named, "auto"), PIXELS[:150, :200])
    planar = tmp_path / "planar.ome.tif"
    planes = np.ascontiguousarray(np.moveaxis(PIXELS, 2, 0))
    tifffile.imwrite(planar, planes, photometric="rgb", planarconfig="separate", tile=(256, 256), metadata=None, **TIFF)
    np.testing.assert_array_equal(read(planar, "auto"), PIXELS[:150, :200])


@pytest.mark.parametrize("names", [None, ["DAPI", "FITC", "TRITC"]])
def test_other_planes_are_refused_with_how_they_are_stored_and_never_called_damaged(tmp_path, names):
    path = write_planes(tmp_path / "p.ome.tif", names)
    for reader in READERS:
        with pytest.raises(UnsupportedPixelsError) as caught:
            open_slide(path, reader=reader)
        text = str(caught.value)
        assert f"3 planes of 1 x uint8 (channels: {', '.join(names or ['no names'])})" in text or names is None
        assert "raw2ometiff --rgb" in text
        assert "damaged" not in text
        assert "copy it again" not in text


@pytest.mark.parametrize(
    ("pixels", "photometric", "said"),
    [
        (PIXELS[..., 0], "minisblack", "1 x uint8"),
        (PIXELS.astype(np.uint16) * 200, "rgb", "3 x uint16"),
        (np.dstack([PIXELS, PIXELS[..., 0]]), "separated", r"4 x uint8"),
        (PIXELS, "cielab", r"3 x uint8 \(photometric 8\)"),
    ],
    ids=["grey", "16-bit", "CMYK", "CIELab"],
)
def test_valid_files_of_another_kind_are_called_that(tmp_path, pixels, photometric, said):
    path = tmp_path / "other.tif"
    tifffile.imwrite(path, pixels, photometric=photometric, tile=(256, 256), metadata=None, **TIFF)
    for reader in READERS:
        with pytest.raises(UnsupportedPixelsError, match=rf"a valid file, but .*{said}.*not 8-bit RGB") as caught:
            open_slide(path, reader=reader)
        assert "damaged" not in str(caught.value)


def test_dicom_with_jpeg_ls_is_valid_and_not_called_damaged(tmp_path, real_data):
    stored = (real_data / "slides" / "w2d_jpeg.dcm").read_bytes()
    baseline = b"1.2.840.10008.1.2.4.50"
    assert stored.count(baseline) == 1
    path = tmp_path / "ls.dcm"
    path.write_bytes(stored.replace(baseline, b"1.2.840.10008.1.2.4.80"))
    with pytest.raises(UnsupportedPixelsError, match=r"a valid file, but .*DICOM with JPEG-LS pixels") as caught:
        open_slide(path)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(("compression", "is_ycbcr"), [(33003, True), (33005, False)])
def test_jpeg_2000_of_aperio_has_the_colours_of_openslide_or_is_refused(tmp_path, compression, is_ycbcr):
    """Neither the codestream nor TiffSlide says that the components of 33003 are YCbCr."""
    part = Image.fromarray(PIXELS[:256, :512])
    stored = np.asarray(part.convert("YCbCr") if is_ycbcr else part)
    tiles = (
        imagecodecs.jpeg2k_encode(stored[:, x : x + 256].copy(), level=0, codecformat="j2k", mct=False)
        for x in (0, 256)
    )
    path = tmp_path / "a.svs"
    aperio = {"description": "Aperio Image Library\n512x256|MPP = 0.25", "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, tiles, shape=stored.shape, dtype="uint8", tile=(256, 256), compression=34712, **aperio)
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages.first.tags[259].valueoffset
    with path.open("r+b") as file:
        file.seek(at)
        file.write(compression.to_bytes(2, "little"))
    assert np.abs(read(path, "auto") - PIXELS[:150, :200]).mean() < 1.5
    if is_ycbcr:
        with pytest.raises(UnsupportedPixelsError, match="does not convert YCbCr"):
            open_slide(path, reader="tiffslide")
    else:
        np.testing.assert_array_equal(read(path, "tiffslide"), PIXELS[:150, :200])


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_levels_in_sub_directories_are_seen_by_auto(tmp_path, compression):
    path = tmp_path / "sub.ome.tif"
    same = {"tile": (256, 256), "photometric": "rgb", "compression": compression}
    size = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(PIXELS, subifds=2, metadata={"axes": "YXS"} | size, **same)
        for level in LEVELS[1:]:
            tiff.write(level, subfiletype=1, **same)
    with open_slide(path) as slide:
        assert slide.info.level_sizes == tuple(Size(level.shape[1], level.shape[0]) for level in LEVELS)
        assert slide.info.pixels_by.startswith("direct" if compression == "jpeg" else "tiffslide")
        assert slide.info.mpp == Scale(0.5, 0.25)
        found = slide.read_region(Point(0, 0), 2, Size(100, 90)).astype(int)
        assert np.abs(found - LEVELS[2][:90, :100]).mean() < (14 if compression == "jpeg" else 0.1)


def test_a_damaged_tile_that_is_compared_on_opening_is_reported_not_left_to_a_reader_that_invents_it(tmp_path):
    path = write_jpeg_pyramid(tmp_path / "damaged.tif", LEVELS, quality=80)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        number = len(page.dataoffsets) // 2
        start, count = page.dataoffsets[number], page.databytecounts[number]
    data[start + count // 2 : start + count // 2 + 100] = bytes(100)
    path.write_bytes(bytes(data))
    with open_slide(path, reader="openslide") as plain:
        found = plain.read_region(Point(0, 0), 0, Size(PIXELS.shape[1], PIXELS.shape[0])).astype(int)
    assert np.abs(found - PIXELS).max() > 150  # invented
    for reader in ("auto", "direct"):
        with pytest.raises(RegionReadError, match=r"slide damaged\.tif: .*the file is damaged there"):
            open_slide(path, reader=reader)


def test_directories_that_form_a_loop_are_refused_at_once_by_every_reader(tmp_path, real_data):
    loops = sorted((real_data / "malformed" / "libtiff").glob("test_ifd_loop_*.tif"))
    assert len(loops) == 3
    long = write_pyramid(tmp_path / "long.tif", LEVELS)
    with tifffile.TiffFile(long) as tiff:
        offsets = [page.offset for page in tiff.pages]
        last = offsets[-1]
    data = bytearray(long.read_bytes())
    entries = int.from_bytes(data[last : last + 2], "little")
    data[last + 2 + 12 * entries : last + 6 + 12 * entries] = offsets[1].to_bytes(4, "little")
    long.write_bytes(bytes(data))
    for path in [*loops, long]:
        for reader in (*READERS, "direct", "image"):
            with pytest.raises(UnsupportedSlideError, match="its TIFF directories form a loop"):
                open_slide(path, reader=reader)
