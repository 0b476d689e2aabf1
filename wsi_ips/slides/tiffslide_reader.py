"""Reader over TiffSlide: SVS, OME-TIFF, tiled TIFF, through tifffile."""

from __future__ import annotations

import math
import struct
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np
import tiffslide

from wsi_ips.errors import RegionReadError, UnsupportedSlideError
from wsi_ips.geometry import Box, Point, Scale, Size
from wsi_ips.slides.base import RGB, SlideInfo
from wsi_ips.slides.region import level_pixel, require_inside
from wsi_ips.slides.scale import trusted_mpp

FOREIGN_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,  # NotImplementedError and the codecs' errors are some
    TypeError,
    ValueError,
    struct.error,
)
"""What TiffSlide, tifffile, zarr and the codecs raise on damaged files; none of them documents it."""


class TiffSlideReader:
    """A slide opened by TiffSlide; a lock lets several threads share it.

    Parameters
    ----------
    path
        The slide.
    mpp_override
        Scale from the manifest; it wins over the file's.

    Raises
    ------
    UnsupportedSlideError
        TiffSlide does not open the file, or its pixels are not 8-bit RGB.
    """

    def __init__(self, path: Path, *, mpp_override: Scale | None = None) -> None:
        try:
            slide = tiffslide.TiffSlide(path)
        except FOREIGN_ERRORS as error:
            raise UnsupportedSlideError(f"slide {path.name}: TiffSlide refuses it: {error}") from error
        try:
            _require_rgb(slide, path.name)
            sizes = tuple(Size(*size) for size in slide.level_dimensions)
            properties = {name: str(v) for name, v in slide.properties.items() if v is not None}
        except FOREIGN_ERRORS as error:
            slide.close()
            if isinstance(error, UnsupportedSlideError):
                raise
            raise UnsupportedSlideError(f"slide {path.name}: TiffSlide refuses it: {error}") from error
        self._slide, self._lock, self._closed = slide, threading.Lock(), False
        mpp, source = trusted_mpp(properties, prefix="tiffslide")
        self.info = SlideInfo(
            name=path.name,
            reader="tiffslide",
            level_sizes=sizes,
            mpp=mpp_override or mpp,
            mpp_source="override" if mpp_override else source,
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
                # Without padding, so that nothing outside the level can ever come back as black pixels.
                pixels = self._slide.read_region(
                    (math.ceil(x * mean), math.ceil(y * mean)),
                    level,
                    (size_px.width, size_px.height),
                    as_array=True,
                    padding=False,
                )
            if pixels.shape[:2] != (size_px.height, size_px.width):
                raise ValueError(f"got {pixels.shape[1]} x {pixels.shape[0]} px")
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _require_rgb(slide: tiffslide.TiffSlide, name: str) -> None:
    """Refuse pixels that are not 8-bit RGB: read as RGB they would be another picture."""
    page = slide.ts_tifffile.pages.first
    if page.dtype != np.uint8 or page.samplesperpixel not in (3, 4):
        raise UnsupportedSlideError(
            f"slide {name}: its pixels are {page.samplesperpixel} x {page.dtype}, not 8-bit RGB; this is no "
            "brightfield slide, leave it out"
        )
