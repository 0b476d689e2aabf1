"""Reader over TiffSlide: SVS, OME-TIFF, tiled TIFF, through tifffile."""

from __future__ import annotations

import math
import struct
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
import tiffslide

from wsi_ips.errors import RegionReadError, SlideError, UnsupportedSlideError
from wsi_ips.geometry import Box, Point, Scale, Size
from wsi_ips.slides.base import RGB, BaseReader, SlideInfo, level_pixel, require_inside, trusted_mpp
from wsi_ips.slides.source import ByteSource, as_file

if TYPE_CHECKING:
    from wsi_ips.slides.readers import SlideFile

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
"""What TiffSlide, tifffile, zarr and the codecs raise on damaged files; none of them documents it."""


def open_tiffslide(file: SlideFile) -> TiffSlideReader:
    """Open a slide with TiffSlide."""
    return TiffSlideReader(file.name, file.source, mpp_override=file.mpp_override)


class TiffSlideReader(BaseReader):
    """A slide opened by TiffSlide; a lock lets several threads share it.

    ``source`` is closed with the reader; ``mpp_override`` replaces the scale in the file.

    Raises
    ------
    UnsupportedSlideError
        TiffSlide does not open the file, or its pixels are not 8-bit RGB.
    """

    owns_source = True

    def __init__(self, name: str, source: ByteSource, *, mpp_override: Scale | None = None) -> None:
        try:
            slide = tiffslide.TiffSlide(as_file(source, name))
        except SlideError:
            raise
        except FOREIGN_ERRORS as error:
            raise UnsupportedSlideError(f"slide {name}: TiffSlide refuses it: {error}") from error
        try:
            _require_rgb_page(name, slide.ts_tifffile.pages.first)
            sizes = tuple(Size(*size) for size in slide.level_dimensions)
            properties = {key: str(value) for key, value in slide.properties.items() if value is not None}
        except SlideError:
            slide.close()
            raise
        except FOREIGN_ERRORS as error:
            slide.close()
            raise UnsupportedSlideError(f"slide {name}: TiffSlide refuses it: {error}") from error
        self._slide, self._source, self._lock = slide, source, threading.Lock()
        mpp, mpp_source = trusted_mpp(properties, prefix="tiffslide")
        self.info = SlideInfo(
            name=name,
            reader="tiffslide",
            level_sizes=sizes,
            mpp=mpp_override or mpp,
            mpp_source="override" if mpp_override else mpp_source,
            bounds=Box(0, 0, *sizes[0]),
            properties=properties,
            pixels_by="tiffslide",
        )

    def read_region(self, location_px0: Point, level: int, size_px: Size) -> RGB:
        """See :class:`wsi_ips.slides.base.SlideReader`."""
        require_inside(self.info, location_px0, level, size_px, closed=self._closed)
        x, y = level_pixel(self.info, location_px0, level, size_px)
        mean = self._slide.level_downsamples[level]  # TiffSlide divides by it and truncates
        try:
            with self._lock:
                # Without padding, so that nothing outside the level comes back as black pixels.
                pixels = self._slide.read_region(
                    (math.ceil(x * mean), math.ceil(y * mean)),
                    level,
                    (size_px.width, size_px.height),
                    as_array=True,
                    padding=False,
                )
            if pixels.shape[:2] != (size_px.height, size_px.width):
                raise ValueError(f"got {pixels.shape[1]} x {pixels.shape[0]} px")
        except SlideError:
            raise
        except FOREIGN_ERRORS as error:
            raise RegionReadError(
                f"slide {self.info.name}: cannot read {size_px.width} x {size_px.height} px of level {level} at "
                f"level-0 {tuple(location_px0)}: {error}; the file is damaged there"
            ) from error
        return np.ascontiguousarray(pixels[..., :3])

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._slide.close()
                self._source.close()


def require_rgb(name: str, source: ByteSource) -> None:
    """Refuse a TIFF whose first directory is not 8-bit RGB.

    Raises
    ------
    UnsupportedSlideError
        Says what the pixels are.
    """
    try:
        with tifffile.TiffFile(as_file(source, name), name=name) as tiff:
            page = tiff.pages.first
    except (tifffile.TiffFileError, ValueError, LookupError) as error:
        raise UnsupportedSlideError(f"slide {name}: its first directory cannot be read: {error}") from error
    _require_rgb_page(name, page)


def _require_rgb_page(name: str, page: Any) -> None:
    """Refuse a ``tifffile.TiffPage`` that does not hold 8-bit RGB, with or without an alpha channel."""
    if page.dtype != np.uint8 or page.samplesperpixel not in (3, 4):
        raise UnsupportedSlideError(
            f"slide {name}: its pixels are {page.samplesperpixel} x {page.dtype}, not 8-bit RGB; this is not a "
            "brightfield slide, leave it out"
        )
