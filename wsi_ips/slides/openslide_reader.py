"""Reader over OpenSlide: SVS, NDPI, MRXS, SCN, DICOM, tiled TIFF and more.

Colour profiles (ICC) are deliberately not applied: other tools and published weights have seen these pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openslide
from numpy.typing import NDArray
from openslide import OpenSlideError, OpenSlideUnsupportedFormatError
from PIL.Image import Image

from wsi_ips.errors import RegionReadError, UnsupportedSlideError
from wsi_ips.geometry import Box, Point, Scale, Size
from wsi_ips.slides.base import RGB, BaseReader, SlideInfo, level_pixel, require_inside, trusted_mpp
from wsi_ips.slides.pool import TileCache
from wsi_ips.slides.tiffslide_reader import require_rgb

if TYPE_CHECKING:
    from wsi_ips.slides.readers import SlideFile

OPAQUE = 255


def open_openslide(file: SlideFile) -> OpenSlideReader:
    """Open a slide with OpenSlide; plain TIFFs that are not 8-bit RGB are refused, as OpenSlide would convert them."""
    reader = OpenSlideReader(Path(file.path), mpp_override=file.mpp_override)
    if reader.info.properties.get("openslide.vendor") == "generic-tiff":
        try:
            require_rgb(file.name, file.source)
        except UnsupportedSlideError:
            reader.close()
            raise
    return reader


class OpenSlideReader(BaseReader):
    """A slide opened by OpenSlide; safe to read from several threads. ``mpp_override`` replaces the scale in the file.

    Raises
    ------
    UnsupportedSlideError
        OpenSlide does not open the file.
    """

    def __init__(self, path: Path, *, mpp_override: Scale | None = None) -> None:
        try:
            slide = openslide.OpenSlide(path)
        except OpenSlideUnsupportedFormatError as error:
            raise UnsupportedSlideError(f"slide {path.name}: not a format OpenSlide knows") from error
        except OpenSlideError as error:
            raise UnsupportedSlideError(f"slide {path.name}: OpenSlide refuses it: {error}") from error
        self._slide = slide
        properties = {name: str(value) for name, value in slide.properties.items()}
        mpp, source = trusted_mpp(properties, prefix="openslide")
        self.info = SlideInfo(
            name=path.name,
            reader="openslide",
            level_sizes=tuple(Size(*size) for size in slide.level_dimensions),
            mpp=mpp_override or mpp,
            mpp_source="override" if mpp_override else source,
            bounds=_bounds(properties, Size(*slide.dimensions)),
            properties=properties,
            pixels_by="openslide",
        )
        self._background = _background(properties)
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
            raise RegionReadError(
                f"slide {self.info.name}: cannot read {size_px.width} x {size_px.height} px of level {level} at "
                f"level-0 {tuple(location_px0)}: {error}; the file is damaged there"
            ) from error
        return _over_background(image, self._background)

    def share(self, cache: TileCache) -> None:
        """Keep decoded tiles in a cache that is shared with other slides."""
        self._slide.set_cache(cache.for_openslide)

    def close(self) -> None:
        """Release the file."""
        if not self._closed:
            self._closed = True
            self._slide.close()


def _over_background(image: Image, background: NDArray[np.uint8]) -> RGB:
    """Convert RGBA to RGB; pixels that were not scanned are transparent and get the file's background colour."""
    if image.tobytes("raw", "A") == bytes([OPAQUE]) * (image.width * image.height):
        return np.array(image.convert("RGB"))  # several times as fast as arithmetic on arrays
    rgba = np.asarray(image)
    weight = rgba[..., 3:].astype(np.float32) / OPAQUE
    return np.rint(rgba[..., :3] * weight + background * (1 - weight)).astype(np.uint8)


def _background(properties: dict[str, str]) -> NDArray[np.uint8]:
    colour = properties.get("openslide.background-color", "FFFFFF")
    return np.frombuffer(bytes.fromhex(colour), np.uint8)


def _bounds(properties: dict[str, str], size: Size) -> Box:
    """Return the scanned part of the slide, clipped to the slide."""
    names = ("x", "y", "width", "height")
    stated = [properties.get(f"openslide.bounds-{name}") for name in names]
    if any(value is None for value in stated):
        return Box(0, 0, *size)
    x, y, width, height = (int(float(str(value))) for value in stated)
    return Box(x, y, min(width, size.width - x), min(height, size.height - y))
