"""Readers over OpenSlide (SVS, NDPI, MRXS, SCN, DICOM, tiled TIFF and more) and TiffSlide (SVS, OME-TIFF, tiled TIFF).

Colour profiles (ICC) are deliberately not applied: other tools and published weights have seen these pixels.
"""

from __future__ import annotations

import math
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openslide
import tiffslide
from numpy.typing import NDArray
from openslide import OpenSlideError, OpenSlideUnsupportedFormatError
from PIL.Image import Image

from wsi_ips.errors import SlideError, UnsupportedPixelsError, UnsupportedSlideError
from wsi_ips.geometry import Box, Point, Scale, Size
from wsi_ips.slides.base import (
    RGB,
    SlideInfo,
    SlideReader,
    damaged,
    level_pixel,
    require_inside,
    trusted_mpp,
)
from wsi_ips.slides.jpeg_tiles import contradiction
from wsi_ips.slides.pool import TileCache
from wsi_ips.slides.source import as_file
from wsi_ips.slides.tiff_header import (
    APERIO_YCBCR,
    ASSOCIATED,
    COMPRESSION,
    DESCRIPTION,
    EXTRA_SAMPLES,
    JPEG,
    PHOTOMETRIC,
    RGB_COMPONENTS,
    SAMPLES,
    UNASSOCIATED,
    YCBCR_COMPONENTS,
    TiffHeader,
)

if TYPE_CHECKING:
    from wsi_ips.slides.readers import SlideFile

OPAQUE = 255
MOST_CHUNKS = 2**24  # tiles or strips of a level, in a plausible header
MISSING = "a tile or strip is missing from the file"
PLAIN = "generic-tiff"  # OpenSlide's vendor of a TIFF that no scanner signed
OWN_DECODERS = ("dicom", "hamamatsu", "mirax")  # vendors whose pixels OpenSlide reads without libtiff
CHANNEL = re.compile(r"""<(?:\w+:)?Channel\b[^>]*?\bName=["']([^"']*)""")  # names in OME-XML


def open_openslide(file: SlideFile) -> OpenSlideReader:
    """Open a slide with OpenSlide; TIFFs that are not 8-bit RGB are refused, as OpenSlide would convert them."""
    reader = OpenSlideReader(Path(file.path), mpp_override=file.mpp_override)
    try:
        vendor, tiff = reader.info.properties.get("openslide.vendor"), file.tiff
        if vendor == PLAIN and (tiff is None or not tiff.directories):
            raise UnsupportedSlideError(f"slide {file.name}: its first directory cannot be read")
        if tiff is not None and tiff.directories and vendor not in OWN_DECODERS:
            first = tiff.directories[0]
            if vendor == PLAIN:
                require_rgb(file.name, tiff, planes_are_read=False)
                reader.is_opaque = first.number(SAMPLES) == 3
            if problem := contradiction(first, jfif_is_ycbcr=False):
                raise _contradicts(file.name, problem)
    except BaseException:
        reader.close()
        raise
    return reader


def open_tiffslide(file: SlideFile) -> TiffSlideReader:
    """Open a slide with TiffSlide."""
    return TiffSlideReader(file)


class OpenSlideReader(SlideReader):
    """A slide opened by OpenSlide; safe to read from several threads. Raises UnsupportedSlideError."""

    is_opaque = False  # whether a transparent pixel can only be that of a missing tile

    def __init__(self, path: Path, *, mpp_override: Scale | None = None) -> None:
        try:
            slide = openslide.OpenSlide(path)
        except OpenSlideUnsupportedFormatError as error:
            raise UnsupportedSlideError(f"slide {path.name}: not a format OpenSlide knows") from error
        except OpenSlideError as error:
            raise UnsupportedSlideError(f"slide {path.name}: OpenSlide refuses it: {error}") from error
        self._slide = slide
        try:
            properties = {name: str(value) for name, value in slide.properties.items()}
            sizes = tuple(Size(*size) for size in slide.level_dimensions)
            info = _info(path.name, "openslide", sizes, properties, mpp_override)
            self.info = replace(info, bounds=_bounds(properties, sizes[0]))
            background = bytes.fromhex(properties.get("openslide.background-color", "FFFFFF"))
            self._background = np.frombuffer(background, np.uint8).reshape(3)
            self._downsamples = slide.level_downsamples
        except BaseException:
            slide.close()
            raise

    def read_region(self, location_px0: Point, level: int, size_px: Size) -> RGB:
        """See :class:`wsi_ips.slides.base.SlideReader`."""
        require_inside(self.info, location_px0, level, size_px, closed=self._closed)
        x, y = level_pixel(self.info, location_px0, level, size_px)
        # OpenSlide divides by one downsample for both axes and renders between pixels; this position hits the pixel.
        mean = self._downsamples[level]
        try:
            image = self._slide.read_region((round(x * mean), round(y * mean)), level, (size_px.width, size_px.height))
            return _over_background(image, self._background, is_opaque=self.is_opaque)
        except Exception as error:  # libraries fail in ways that cannot be listed
            raise damaged(self.info, location_px0, level, size_px, error) from error

    def share(self, cache: TileCache) -> None:
        """Keep decoded tiles in a cache that is shared with other slides."""
        self._slide.set_cache(cache.for_openslide)

    def close(self) -> None:
        """Release the file."""
        if not self._closed:
            self._closed = True
            self._slide.close()


class TiffSlideReader(SlideReader):
    """A slide opened by TiffSlide, which closes the file's source; a lock lets several threads share it.

    Raises UnsupportedSlideError where TiffSlide does not open the file, or its pixels are not 8-bit RGB.
    """

    owns_source = True

    def __init__(self, file: SlideFile) -> None:
        name, tiff = file.name, file.tiff
        if tiff is None or not tiff.directories:
            raise UnsupportedSlideError(f"slide {name}: no TIFF")
        first = tiff.directories[0]
        require_rgb(name, tiff, planes_are_read=True)
        if problem := contradiction(first, jfif_is_ycbcr=True):
            raise _contradicts(name, problem)
        compression, is_ycbcr = first.number(COMPRESSION), first.number(PHOTOMETRIC) == YCBCR_COMPONENTS
        if compression == APERIO_YCBCR or (is_ycbcr and compression != JPEG):
            raise UnsupportedPixelsError(f"slide {name}: TiffSlide does not convert YCbCr that is not JPEG to RGB")
        slide = tiffslide.TiffSlide(as_file(file.source, name))
        try:
            sizes = tuple(Size(*size) for size in slide.level_dimensions)
            properties = {key: str(value) for key, value in slide.properties.items() if value is not None}
            self.info = _info(name, "tiffslide", sizes, properties, file.mpp_override)
            self._gaps = [_gaps(tiff, size) for size in sizes]
        except BaseException:
            slide.close()
            raise
        self._white_gaps = properties.get("tiffslide.vendor") == "philips"  # which does not scan empty glass
        extra = first.number(EXTRA_SAMPLES, ASSOCIATED) if first.number(SAMPLES) > 3 else 0
        self._slide, self._source, self._lock = slide, file.source, threading.Lock()
        self._is_multiplied = extra != UNASSOCIATED

    def read_region(self, location_px0: Point, level: int, size_px: Size) -> RGB:
        """See :class:`wsi_ips.slides.base.SlideReader`."""
        require_inside(self.info, location_px0, level, size_px, closed=self._closed)
        x, y = level_pixel(self.info, location_px0, level, size_px)
        try:
            mean = self._slide.level_downsamples[level]  # TiffSlide divides by it and truncates
            there, size = (math.ceil(x * mean), math.ceil(y * mean)), (size_px.width, size_px.height)
            with self._lock:
                # Without padding, so that nothing outside the level comes back as black pixels.
                pixels = self._slide.read_region(there, level, size, as_array=True, padding=False)
            if pixels.shape[:2] != (size_px.height, size_px.width):
                raise ValueError(f"got {pixels.shape[1]} x {pixels.shape[0]} px")
            rgb = _over_white(pixels.astype(np.uint8, copy=False), is_multiplied=self._is_multiplied)
            self._fill_gaps(rgb, level, Point(x, y))
        except SlideError:
            raise
        except Exception as error:  # libraries fail in ways that cannot be listed
            raise damaged(self.info, location_px0, level, size_px, error) from error
        return rgb

    def _fill_gaps(self, rgb: RGB, level: int, at: Point) -> None:
        """Refuse pixels of missing tiles or strips, which TiffSlide shows in black; those of Philips become white."""
        left, top, right, bottom, is_cut = self._gaps[level]
        height, width = rgb.shape[:2]
        touched = (left < at.x + width) & (right > at.x) & (top < at.y + height) & (bottom > at.y)
        if (is_cut[touched] == 1).any() or (touched.any() and not self._white_gaps):
            raise ValueError(MISSING)
        for x, y, end_x, end_y, _ in self._gaps[level][:, touched].T.tolist():
            rgb[max(0, y - at.y) : end_y - at.y, max(0, x - at.x) : end_x - at.x] = OPAQUE

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._slide.close()
                self._source.close()


def _info(
    name: str, reader: str, sizes: tuple[Size, ...], properties: dict[str, str], override: Scale | None
) -> SlideInfo:
    mpp, source = (override, "override") if override else trusted_mpp(properties, prefix=reader, size=sizes[0])
    return SlideInfo(name, reader, sizes, mpp, source, Box(0, 0, *sizes[0]), properties, pixels_by=reader)


def _over_background(image: Image, background: NDArray[np.uint8], *, is_opaque: bool) -> RGB:
    """Convert RGBA to RGB; pixels that were not scanned are transparent and get the file's background colour."""
    if image.tobytes("raw", "A") == bytes([OPAQUE]) * (image.width * image.height):
        return np.array(image.convert("RGB"))  # several times as fast as arithmetic on arrays
    rgba = np.asarray(image)
    if is_opaque and not rgba[..., 3].all():
        raise ValueError(MISSING)
    weight = rgba[..., 3:].astype(np.float32) / OPAQUE
    return np.rint(rgba[..., :3] * weight + background * (1 - weight)).astype(np.uint8)


def _over_white(pixels: NDArray[np.uint8], *, is_multiplied: bool) -> RGB:
    """Convert RGB or RGBA to RGB over white; ``is_multiplied``: the colours are multiplied by alpha already."""
    rgb = pixels[..., :3]
    if pixels.shape[2] == 3 or (pixels[..., 3] == OPAQUE).all():
        return np.ascontiguousarray(rgb)
    alpha = pixels[..., 3:].astype(np.float32) / OPAQUE
    over = (rgb if is_multiplied else rgb * alpha) + OPAQUE * (1 - alpha)
    return np.asarray(np.rint(over.clip(0, OPAQUE)).astype(np.uint8))


def _gaps(tiff: TiffHeader, size: Size) -> NDArray[np.int64]:
    """Return the tiles or strips of the level of a size that are not in the file, shape (5, n).

    Rows: left, top, right and bottom in level pixels, and whether the file ends within it or no longer says where it
    is (1), or it has no bytes (0).
    """
    found = [np.zeros((5, 0), np.int64)]
    for page in (page for top in tiff.directories for page in (top, *top.children)):
        width, height = page.chunk
        if page.size == size:
            if min(width, height) <= 0:
                raise ValueError("its header gives tiles or strips of no pixels")
            columns, rows = -(-size.width // width), -(-size.height // height)
            offsets, counts = page.chunk_offsets, page.chunk_bytes
            entries = max(columns * rows, len(offsets), len(counts))
            if entries > MOST_CHUNKS:
                raise ValueError(f"a level of {entries} tiles or strips")
            offsets, counts = _padded(offsets, entries), _padded(counts, entries)
            is_cut = (offsets < 0) | (counts < 0) | (offsets > page.source.size - counts)
            missing = np.flatnonzero((counts == 0) | is_cut)
            y, x = np.divmod(missing % (columns * rows), columns)
            ends = ((x + 1) * width, (y + 1) * height)
            found.append(np.stack([x * width, y * height, *ends, is_cut[missing]]))
    return np.concatenate(found, axis=1)


def _padded(found: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return a table of at least ``count`` entries; those that the file lacks are -1."""
    return np.pad(found, (0, max(0, count - len(found))), constant_values=-1)


def _bounds(properties: dict[str, str], size: Size) -> Box:
    """Return the scanned part of the slide, clipped to the slide."""
    stated = [properties.get(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
    if None in stated:
        return Box(0, 0, *size)
    x, y, width, height = (int(float(str(value))) for value in stated)
    return Box(x, y, min(width, size.width - x), min(height, size.height - y))


def require_rgb(name: str, tiff: TiffHeader, *, planes_are_read: bool) -> None:
    """Refuse a TIFF that does not hold 8-bit RGB, with or without alpha, or (if read) red, green and blue planes."""
    first = tiff.directories[0]
    kind, photometric = first.pixel_kind, first.number(PHOTOMETRIC)
    if kind in ("3 x uint8", "4 x uint8") and photometric in (RGB_COMPONENTS, YCBCR_COMPONENTS):
        return
    colours = "" if photometric <= YCBCR_COMPONENTS else f" (photometric {photometric})"
    planes = [page for page in tiff.directories if (page.size, page.pixel_kind) == (first.size, "1 x uint8")]
    if len(planes) < 2:
        raise UnsupportedPixelsError(
            f"slide {name}: its pixels are {kind}{colours}, not 8-bit RGB; convert it to 8-bit RGB if it is a "
            "brightfield slide, else leave it out"
        )
    names = CHANNEL.findall(first.data(DESCRIPTION).decode("utf-8", "replace"))
    if [channel.lower() for channel in names] not in (["red", "green", "blue"], ["r", "g", "b"]):
        raise UnsupportedPixelsError(
            f"slide {name}: its pixels are {len(planes)} planes of {kind} (channels: {', '.join(names) or 'no names'}"
            "), not 8-bit RGB; they are read as a brightfield slide where OME-XML names them Red, Green and Blue: "
            "write the slide as RGB (`raw2ometiff --rgb`), or leave it out if it is fluorescence"
        )
    if not planes_are_read:
        raise UnsupportedPixelsError(f"slide {name}: red, green and blue are planes of their own, of {kind}")


def _contradicts(name: str, problem: str) -> UnsupportedPixelsError:
    return UnsupportedPixelsError(
        f"slide {name}: {problem}, so its colours depend on the program; write the slide again from its source"
    )
