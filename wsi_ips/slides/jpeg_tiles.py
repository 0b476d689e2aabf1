"""JPEG tiles of a TIFF: their positions in the file, and how to decode them.

Sources: TIFF 6.0 and its Technical Note 2 (abbreviated streams with shared tables, tag 347), the BigTIFF note, Adobe
Technical Note 5116 (marker APP14: colour space of the components).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from wsi_ips.errors import SlideError, UnsupportedSlideError
from wsi_ips.geometry import Size
from wsi_ips.slides.base import RGB
from wsi_ips.slides.source import ByteSource, as_file

JPEG = 7
RGB_COMPONENTS, YCBCR_COMPONENTS = 2, 6
SOI, EOI = b"\xff\xd8", b"\xff\xd9"
JFIF = b"\xff\xe0"
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
    try:
        with tifffile.TiffFile(as_file(source, name), name=name) as tiff:
            found = [p for page in tiff.pages for p in (page, *(getattr(page, "pages", None) or ()))]
            tiled = [page for page in found if isinstance(page, tifffile.TiffPage) and page.is_tiled]
            pages = _pages(name, tiled, level_sizes)
            return tuple(
                _level(f"slide {name}: level {n}", page, size, jfif_is_ycbcr=jfif_is_ycbcr and _has_jfif(source, page))
                for n, (page, size) in enumerate(zip(pages, level_sizes, strict=True))
            )
    except SlideError:
        raise
    except (tifffile.TiffFileError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UnsupportedSlideError(f"slide {name}: no TIFF that can be read directly: {error}") from error


def _pages(name: str, directories: list[tifffile.TiffPage], sizes: tuple[Size, ...]) -> list[tifffile.TiffPage]:
    """Return the directory of each level: in file order where the sizes match, else the only one of its size."""
    in_order = directories[: len(sizes)]
    if len(directories) == len(sizes) and all(map(_shows, in_order, sizes)):
        return in_order
    pages = []
    for number, size in enumerate(sizes):
        same = [page for page in directories if (page.imagewidth, page.imagelength) == size]
        if len(same) != 1:
            raise UnsupportedSlideError(
                f"slide {name}: level {number} is stored in {len(same) or 'no'} tiled directories of its size"
            )
        pages += same
    return pages


def _level(name: str, page: tifffile.TiffPage, size: Size, *, jfif_is_ycbcr: bool) -> JpegTiles:
    if page.compression != JPEG:
        compression = str(getattr(page.compression, "name", page.compression)).replace("_", " ")
        raise UnsupportedSlideError(f"{name} is {compression.replace('NONE', 'not compressed')}, not JPEG")
    sampled = (page.samplesperpixel, page.bitspersample, int(page.planarconfig), page.tiledepth)
    if sampled != (3, 8, 1, 1) or page.photometric not in (RGB_COMPONENTS, YCBCR_COMPONENTS):
        raise UnsupportedSlideError(f"{name} is not 8-bit RGB or YCbCr")
    is_ycbcr = page.photometric == YCBCR_COMPONENTS or jfif_is_ycbcr
    offsets, counts = (np.asarray(values, np.int64) for values in (page.dataoffsets, page.databytecounts))
    rows, columns = -(-size.height // page.tilelength), -(-size.width // page.tilewidth)
    if not len(offsets) == len(counts) == rows * columns:
        raise UnsupportedSlideError(f"{name} has {len(offsets)} tiles where its size needs {rows * columns}")
    # start of image, APP14 with the colour space, and the shared tables without their frame
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x01" if is_ycbcr else b"\x00")
    prefix = SOI + adobe + (page.jpegtables or b"").removeprefix(SOI).removesuffix(EOI)
    tile = Size(page.tilewidth, page.tilelength)
    return JpegTiles(size, tile, offsets, counts, prefix, components="YCbCr" if is_ycbcr else "RGB")


def _shows(page: tifffile.TiffPage, size: Size) -> bool:
    """Return whether a directory holds a level: it has its size, or is padded to whole tiles (Philips)."""
    width, height = page.imagewidth, page.imagelength
    padded = (-(-size.width // page.tilewidth) * page.tilewidth, -(-size.height // page.tilelength) * page.tilelength)
    return (width, height) in (tuple(size), padded)


def _has_jfif(source: ByteSource, page: tifffile.TiffPage) -> bool:
    stored = [offset for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True) if count]
    return bool(stored) and source.read_at(stored[0] + 2, 2) == JFIF
