"""Plain images open as slides: the pixels of the file in RGB, and a refusal for what is no plain image."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.pyramids import gradient_level
from wsi_ips.errors import ResolutionError, UnsupportedSlideError
from wsi_ips.geometry import Point, Scale, Size
from wsi_ips.slides import image_reader, open_slide

RGB = gradient_level(203, 117)
GREY = RGB[..., 2]


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def read(path: Path) -> np.ndarray:
    with open_slide(path, mpp_override=1.0) as slide:
        assert slide.info.level_sizes == (Size(203, 117),)
        assert slide.info.mpp == Scale(1, 1)
        assert slide.info.mpp_source == "override"
        part = slide.read_region(Point(100, 50), 0, Size(40, 30))
        whole = slide.read_region(Point(0, 0), 0, Size(203, 117))
    np.testing.assert_array_equal(part, whole[50:80, 100:140])
    return whole


@pytest.mark.parametrize("name", ["a.png", "a.tif", "lzw.tiff"])
def test_colour_is_read_as_it_is(tmp_path, name):
    options = {"compression": "tiff_lzw"} if name == "lzw.tiff" else {}
    np.testing.assert_array_equal(read(save(tmp_path / name, RGB, **options)), RGB)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.jpg"])
def test_grey_is_repeated_in_three_channels(tmp_path, name):
    path = save(tmp_path / name, GREY, **({"quality": 100} if name == "grey.jpg" else {}))
    found = read(path)
    np.testing.assert_allclose(found[..., 0], GREY, atol=2 if name == "grey.jpg" else 0)
    assert (found == found[..., :1]).all()
    with open_slide(path, mpp_override=1.0) as slide:
        assert slide.info.reader == "image"
        assert slide.info.pixels_by.startswith("image: ")
        assert slide.bytes_held == 3 * GREY.size


def test_jpeg_palette_and_transparency(tmp_path):
    np.testing.assert_allclose(read(save(tmp_path / "a.jpg", RGB, quality=100, subsampling=0)), RGB, atol=4)
    palette = Image.fromarray(GREY // 8 * 8).convert("P")
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:, :100] = 0
    found = read(save(tmp_path / "rgba.png", np.dstack([RGB, alpha])))
    assert (found[:, :100] == 255).all()
    np.testing.assert_array_equal(found[:, 100:], RGB[:, 100:])


def test_an_image_states_no_scale(tmp_path):
    path = save(tmp_path / "a.png", RGB, dpi=(300, 300))
    with open_slide(path) as slide:
        assert slide.info.mpp is None
        with pytest.raises(ResolutionError, match="a plain image states none"):
            _ = slide.info.pyramid


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit RGB, which Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_what_is_no_plain_image_is_refused(tmp_path, monkeypatch):
    deep = tmp_path / "deep.png"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).save(deep)
    deep_colour = tmp_path / "colour.png"
    deep_colour.write_bytes(png_of_16_bits(RGB))
    deep_tiff = tmp_path / "colour.tif"
    tifffile.imwrite(deep_tiff, RGB.astype(np.uint16), photometric="rgb")
    pages = tmp_path / "pages.tif"
    with tifffile.TiffWriter(pages) as tif:
        for _ in range(2):
            tif.write(GREY, photometric="minisblack", metadata=None)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    cut = save(tmp_path / "cut.png", RGB)
    cut.write_bytes(cut.read_bytes()[:300])
    for path, message in (
        (deep, r"its pixels are (I;16|16-bit), not 8-bit grey or RGB"),
        (deep_colour, "its pixels are 16-bit, not 8-bit grey or RGB"),
        (deep_tiff, "its pixels are 16-bit, not 8-bit grey or RGB"),
        (pages, "a TIFF of tiles or several pages is no plain image"),
        (text, r"no plain image\)"),
        (cut, "as a plain image: "),
    ):
        with pytest.raises(UnsupportedSlideError, match=message):
            open_slide(path, mpp_override=1.0)
    monkeypatch.setattr(image_reader, "MOST_PIXELS", 10_000)
    with pytest.raises(UnsupportedSlideError, match=r"too large to be decoded whole.*`vips colourspace"):
        open_slide(save(tmp_path / "large.png", RGB), mpp_override=1.0)
