"""Readers over OpenSlide (SVS, NDPI, MRXS, SCN, DICOM, tiled TIFF and more) and TiffSlide (SVS, OME-TIFF, tiled TIFF).

Colour profiles (ICC) are deliberately not applied: other tools and published weights have seen these pixels.
"""

from __future__ import annotations

import math
import struct
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
import tifffile
import tiffslide
from numpy.typing import NDArray
from openslide import OpenSlideError, OpenSlideUnsupportedFormatError
from PIL.Image import Image

from wsi_ips.errors import SlideError, UnsupportedSlideError
from wsi_ips.geometry import Box, Point, Scale, Size
from wsi_ips.slides.base import RGB, SlideInfo, SlideReader, damaged, level_pixel, require_inside, trusted_mpp
from wsi_ips.slides.pool import TileCache
from wsi_ips.slides.source import ByteSource, as_file

if TYPE_CHECKING:
    from wsi_ips.slides.readers import SlideFile

OPAQUE = 255
# what TiffSlide, tifffile, zarr and the codecs raise on damaged files; none of them documents it
FOREIGN_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,  # also NotImplementedError and the codecs' errors
    TypeError,
    ValueError,
    struct.error,
)


def open_openslide(file: SlideFile) -> OpenSlideReader:
    """Open a slide with OpenSlide; plain TIFFs that are not 8-bit RGB are refused, as OpenSlide would convert them."""
    reader = OpenSlideReader(Path(file.path), mpp_override=file.mpp_override)
    if reader.info.properties.get("openslide.vendor") == "generic-tiff":
        try:
            with tifffile.TiffFile(as_file(file.source, file.name), name=file.name) as tiff:
                _require_rgb(file.name, tiff.pages.first)
        except (SlideError, tifffile.TiffFileError, ValueError, LookupError) as error:
            reader.close()
            if isinstance(error, SlideError):
                raise
            raise UnsupportedSlideError(f"slide {file.name}: its first directory cannot be read: {error}") from error
    return reader


def open_tiffslide(file: SlideFile) -> TiffSlideReader:
    """Open a slide with TiffSlide."""
    return TiffSlideReader(file.name, file.source, mpp_override=file.mpp_override)


class OpenSlideReader(SlideReader):
    """A slide opened by OpenSlide; safe to read from several threads. Raises UnsupportedSlideError."""

    def __init__(self, path: Path, *, mpp_override: Scale | None = None) -> None:
        try:
            slide = openslide.OpenSlide(path)
        except OpenSlideUnsupportedFormatError as error:
            raise UnsupportedSlideError(f"slide {path.name}: not a format OpenSlide knows") from error
        except OpenSlideError as error:
            raise UnsupportedSlideError(f"slide {path.name}: OpenSlide refuses it: {error}") from error
        self._slide = slide
        properties = {name: str(value) for name, value in slide.properties.items()}
        sizes = tuple(Size(*size) for size in slide.level_dimensions)
        info = _info(path.name, "openslide", sizes, properties, mpp_override)
        self.info = replace(info, bounds=_bounds(properties, sizes[0]))
        self._background = np.frombuffer(
            bytes.fromhex(properties.get("openslide.background-color", "FFFFFF")), np.uint8
        )
        self._downsamples = slide.level_downsamples

    def read_region(self, location_px0: Point, level: int, size_px: Size) -> RGB:
        """See :class:`wsi_ips.slides.base.SlideReader`."""
        require_inside(self.info, location_px0, level, size_px, closed=self._closed)
        x, y = level_pixel(self.info, location_px0, level, size_px)
        # OpenSlide divides by one downsample for both axes and renders between pixels; this position hits the pixel.
        mean = self._downsamples[level]
        try:
            image = self._slide.read_region((round(x * mean), round(y * mean)), level, (size_px.width, size_px.height))
        except (OpenSlideError, ValueError) as error:
            raise damaged(self.info, location_px0, level, size_px, error) from error
        return _over_background(image, self._background)

    def share(self, cache: TileCache) -> None:
        """Keep decoded tiles in a cache that is shared with other slides."""
        self._slide.set_cache(cache.for_openslide)

    def close(self) -> None:
        """Release the file."""
        if not self._closed:
            self._closed = True
            self._slide.close()


class TiffSlideReader(SlideReader):
    """A slide opened by TiffSlide, which closes ``source``; a lock lets several threads share it.

    Raises UnsupportedSlideError where TiffSlide does not open the file, or its pixels are not 8-bit RGB.
    """

    owns_source = True

    def __init__(self, name: str, source: ByteSource, *, mpp_override: Scale | None = None) -> None:
        slide = None
        try:
            slide = tiffslide.TiffSlide(as_file(source, name))
            _require_rgb(name, slide.ts_tifffile.pages.first)
            sizes = tuple(Size(*size) for size in slide.level_dimensions)
            properties = {key: str(value) for key, value in slide.properties.items() if value is not None}
        except (SlideError, *FOREIGN_ERRORS) as error:
            if slide is not None:
                slide.close()
            if isinstance(error, SlideError):
                raise
            raise UnsupportedSlideError(f"slide {name}: TiffSlide refuses it: {error}") from error
        self._slide, self._source, self._lock = slide, source, threading.Lock()
        self.info = _info(name, "tiffslide", sizes, properties, mpp_override)

    def read_region(self, location_px0: Point, level: int, size_px: Size) -> RGB:
        """See :class:`wsi_ips.slides.base.SlideReader`."""
        require_inside(self.info, location_px0, level, size_px, closed=self._closed)
        x, y = level_pixel(self.info, location_px0, level, size_px)
        mean = self._slide.level_downsamples[level]  # TiffSlide divides by it and truncates
        there, size = (math.ceil(x * mean), math.ceil(y * mean)), (size_px.width, size_px.height)
        try:
            with self._lock:
                # Without padding, so that nothing outside the level comes back as black pixels.
                pixels = self._slide.read_region(there, level, size, as_array=True, padding=False)
            if pixels.shape[:2] != (size_px.height, size_px.width):
                raise ValueError(f"got {pixels.shape[1]} x {pixels.shape[0]} px")
        except SlideError:
            raise
        except FOREIGN_ERRORS as error:
            raise damaged(self.info, location_px0, level, size_px, error) from error
        return np.ascontiguousarray(pixels[..., :3])

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
    mpp, source = (override, "override") if override else trusted_mpp(properties, prefix=reader)
    return SlideInfo(name, reader, sizes, mpp, source, Box(0, 0, *sizes[0]), properties, pixels_by=reader)


def _over_background(image: Image, background: NDArray[np.uint8]) -> RGB:
    """Convert RGBA to RGB; pixels that were not scanned are transparent and get the file's background colour."""
    if image.tobytes("raw", "A") == bytes([OPAQUE]) * (image.width * image.height):
        return np.array(image.convert("RGB"))  # several times as fast as arithmetic on arrays
    rgba = np.asarray(image)
    weight = rgba[..., 3:].astype(np.float32) / OPAQUE
    return np.rint(rgba[..., :3] * weight + background * (1 - weight)).astype(np.uint8)


def _bounds(properties: dict[str, str], size: Size) -> Box:
    """Return the scanned part of the slide, clipped to the slide."""
    stated = [properties.get(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
    if None in stated:
        return Box(0, 0, *size)
    x, y, width, height = (int(float(str(value))) for value in stated)
    return Box(x, y, min(width, size.width - x), min(height, size.height - y))


def _require_rgb(name: str, page: Any) -> None:
    """Refuse a ``tifffile.TiffPage`` that does not hold 8-bit RGB, with or without an alpha channel."""
    if page.dtype != np.uint8 or page.samplesperpixel not in (3, 4):
        raise UnsupportedSlideError(
            f"slide {name}: its pixels are {page.samplesperpixel} x {page.dtype}, not 8-bit RGB; this is not a "
            "brightfield slide, leave it out"
        )
