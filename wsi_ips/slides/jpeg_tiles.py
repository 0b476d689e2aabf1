"""JPEG tiles of a TIFF: their positions in the file, and how to decode them.

Sources: TIFF 6.0 and its Technical Note 2 (abbreviated streams with shared tables, tag 347), the BigTIFF note, Adobe
Technical Note 5116 (marker APP14: colour space of the components).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from wsi_ips.errors import UnsupportedSlideError
from wsi_ips.geometry import Size
from wsi_ips.slides.base import RGB
from wsi_ips.slides.source import ByteSource
from wsi_ips.slides.tiff_header import (
    COMPRESSION,
    COMPRESSIONS,
    JPEG,
    JPEG_TABLES,
    PHOTOMETRIC,
    PLANAR,
    RGB_COMPONENTS,
    TILE_DEPTH,
    YCBCR_COMPONENTS,
    Directory,
    read_tiff_header,
)

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
APP0, APP14, SCAN, FRAMES = 0xE0, 0xEE, 0xDA, (0xC0, 0xC1, 0xC2)  # markers of a JPEG
MARKER_BYTES = 4096  # of a stream, in which its colour space is looked for
FACTORS = (2, 4, 8)  # by which the decoder can shrink while it decodes (it transforms fewer coefficients)


@dataclass(frozen=True)
class JpegTiles:
    """One level stored as JPEG tiles."""

    size: Size  # of the level, pixels
    tile: Size  # of every tile, also of those that hang over the right and lower edge
    # position of each stream in the file, shape (tile rows * tile columns,); count 0: the tile was not scanned
    offsets: NDArray[np.int64]
    byte_counts: NDArray[np.int64]
    prefix: bytes  # replaces the first two bytes of each stream: start of image, colour space, shared tables
    components: str  # `YCbCr` or `RGB`

    @property
    def columns(self) -> int:
        """Number of tile columns."""
        return -(-self.size.width // self.tile.width)

    def complete(self, stream: bytes) -> bytes:
        """Return a stream that any decoder understands."""
        return self.prefix + stream[2:]


def decode(stream: bytes, size: Size, *, factor: int, out: RGB) -> None:
    """Decode a complete JPEG, shrunk by ``factor`` (1, or one of :data:`FACTORS`), into contiguous memory of that size.

    Raises ValueError where the stream is damaged or not of ``size``.
    """
    expected = (size.height // factor, size.width // factor, 3)
    least = {} if factor == 1 else {"min_height": expected[0], "min_width": expected[1]}
    pixels = simplejpeg.decode_jpeg(stream, "RGB", buffer=out, strict=True, **least)
    if pixels.shape != expected:
        raise ValueError(
            f"the JPEG has {pixels.shape[1]} x {pixels.shape[0]} px instead of {expected[1]} x {expected[0]}"
        )


def find_jpeg_tiles(
    name: str, source: ByteSource, level_sizes: tuple[Size, ...], *, jfif_is_ycbcr: bool
) -> tuple[JpegTiles, ...]:
    """Find the JPEG tiles of each level of a TIFF or BigTIFF; ``level_sizes`` come from another reader.

    With ``jfif_is_ycbcr``, a stream with a JFIF marker is YCbCr although its directory says RGB (TiffSlide says yes,
    OpenSlide no). Raises UnsupportedSlideError that says which level is not stored as 8-bit JPEG tiles.
    """
    header = read_tiff_header(source)
    if header is None:
        raise UnsupportedSlideError(f"slide {name}: no TIFF")
    found = [d for page in header.directories for d in (page, *page.children)]
    pages = _pages(name, [page for page in found if page.is_tiled and min(page.chunk) > 0], level_sizes)
    return tuple(
        _level(f"slide {name}: level {n}", page, size, jfif_is_ycbcr=jfif_is_ycbcr)
        for n, (page, size) in enumerate(zip(pages, level_sizes, strict=True))
    )


def contradiction(directory: Directory, *, jfif_is_ycbcr: bool) -> str:
    """Say how the colour space in a directory of JPEG tiles contradicts its first stream; empty where it does not.

    Bio-Formats and QuPath write YCbCr with a JFIF marker and call it RGB; ``jfif_is_ycbcr`` accepts that.
    """
    tagged = {RGB_COMPONENTS: "RGB", YCBCR_COMPONENTS: "YCbCr"}.get(directory.number(PHOTOMETRIC))
    if directory.number(COMPRESSION) != JPEG or tagged is None:
        return ""
    stated, is_jfif = _stated_components(directory)
    if stated in ("", tagged) or (is_jfif and jfif_is_ycbcr):
        return ""
    return f"its directory says {tagged}, its JPEG streams say {stated}"


def _stated_components(directory: Directory) -> tuple[str, bool]:
    """Return the colour space that the first stored stream states (empty where it states none), and whether by JFIF.

    The order is that of libjpeg: JFIF, then Adobe's marker, then the names of the components.
    """
    offsets, counts = directory.chunk_offsets, directory.chunk_bytes
    stored = [n for n in range(min(len(offsets), len(counts))) if counts[n] > 0][:1]
    start = b""
    for n in stored:
        start = directory.source.read_at(int(offsets[n]), min(MARKER_BYTES, int(counts[n])))
    adobe = names = ""
    for kind, data in (*_segments(directory.data(JPEG_TABLES)), *_segments(start)):
        if kind == APP0 and data.startswith(b"JFIF"):
            return "YCbCr", True
        if kind == APP14 and data.startswith(b"Adobe") and len(data) >= 12:
            adobe = {0: "RGB", 1: "YCbCr"}.get(data[11], "")
        if kind in FRAMES and data[6::3] == b"RGB":
            names = "RGB"
    return adobe or names, False


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and data of each segment before the scan."""
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF and stream[at + 1] != SCAN:
        length = int.from_bytes(stream[at + 2 : at + 4], "big")
        yield stream[at + 1], stream[at + 4 : at + 2 + length]
        at += 2 + max(2, length)


def _pages(name: str, directories: list[Directory], sizes: tuple[Size, ...]) -> list[Directory]:
    """Return the directory of each level: in file order where the sizes match, else the only one of its size."""
    in_order = directories[: len(sizes)]
    if len(directories) == len(sizes) and all(map(_shows, in_order, sizes)):
        return in_order
    pages = []
    for number, size in enumerate(sizes):
        same = [page for page in directories if page.size == size]
        if len(same) != 1:
            raise UnsupportedSlideError(
                f"slide {name}: level {number} is stored in {len(same) or 'no'} tiled directories of its size"
            )
        pages += same
    return pages


def _level(name: str, page: Directory, size: Size, *, jfif_is_ycbcr: bool) -> JpegTiles:
    compression, photometric = page.number(COMPRESSION, 1), page.number(PHOTOMETRIC)
    if compression != JPEG:
        raise UnsupportedSlideError(f"{name} is {COMPRESSIONS.get(compression, compression)}, not JPEG")
    sampled = (page.pixel_kind, page.number(PLANAR, 1), page.number(TILE_DEPTH, 1))
    if sampled != ("3 x uint8", 1, 1) or photometric not in (RGB_COMPONENTS, YCBCR_COMPONENTS):
        raise UnsupportedSlideError(f"{name} is not 8-bit RGB or YCbCr")
    offsets, counts, tile = page.chunk_offsets, page.chunk_bytes, page.chunk
    rows, columns = -(-size.height // tile.height), -(-size.width // tile.width)
    if not len(offsets) == len(counts) == rows * columns:
        raise UnsupportedSlideError(f"{name} has {len(offsets)} tiles where its size needs {rows * columns}")
    is_ycbcr = photometric == YCBCR_COMPONENTS or (jfif_is_ycbcr and _stated_components(page)[1])
    # start of image, APP14 with the colour space, and the shared tables without their frame
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x01" if is_ycbcr else b"\x00")
    prefix = SOI + adobe + page.data(JPEG_TABLES).removeprefix(SOI).removesuffix(EOI)
    return JpegTiles(size, tile, offsets, counts, prefix, components="YCbCr" if is_ycbcr else "RGB")


def _shows(page: Directory, size: Size) -> bool:
    """Return whether a directory holds a level: it has its size, or is padded to whole tiles (Philips)."""
    width, height = page.chunk
    padded = (-(-size.width // width) * width, -(-size.height // height) * height)
    return page.size in (size, padded)
