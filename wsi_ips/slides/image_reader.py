"""Reader of plain images (PNG, JPEG, TIFF of one page without tiles, colour or grey), which are decoded whole."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from wsi_ips.errors import UnsupportedPixelsError, UnsupportedSlideError
from wsi_ips.slides.base import RGB, ArrayReader, said
from wsi_ips.slides.source import as_file

if TYPE_CHECKING:
    from wsi_ips.slides.readers import SlideFile

FORMATS = ("PNG", "JPEG", "TIFF")
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # Pillow's modes
TILE_WIDTH = 322  # tag of a TIFF
MOST_PIXELS = 2**26  # of an image: 200 MB once decoded
WHITE = (255, 255, 255, 255)


class ImageReader(ArrayReader):
    """A plain image in memory, with one level; grey is repeated in red, green and blue, transparency becomes white.

    It takes no scale from the file: what images state is that of paper or screen.
    """

    def __init__(self, pixels: RGB, file: SlideFile, kind: str) -> None:
        super().__init__([pixels], file.mpp_override, name=file.name)
        source = "override" if file.mpp_override else "a plain image states none, and `slides.unit: pixels` needs none"
        self.info = replace(self.info, reader="image", mpp_source=source, pixels_by=f"image: {kind}, decoded whole")
        self.bytes_held = pixels.nbytes


def open_image(file: SlideFile) -> ImageReader:
    """Decode a plain image; refuse TIFFs of several pages or of tiles, more than 8 bits, and too large images."""
    try:
        with closing(as_file(file.source, file.name)) as stored, Image.open(stored, formats=FORMATS) as image:
            _require_plain(image, file.name)
            return ImageReader(_rgb(image), file, str(image.format))
    except UnsupportedSlideError:
        raise
    except Exception as error:  # Pillow fails in ways that cannot be listed: SyntaxError for a damaged PNG, for example
        found = "no plain image" if isinstance(error, UnidentifiedImageError) else f"as a plain image: {said(error)}"
        raise UnsupportedSlideError(f"slide {file.name}: {found}") from error


def _require_plain(image: Image.Image, name: str) -> None:
    pages, pixels = getattr(image, "n_frames", 1), image.width * image.height
    is_tiled = TILE_WIDTH in getattr(image, "tag_v2", {})
    if pages > 1 or is_tiled:
        raise UnsupportedSlideError(f"slide {name}: a {image.format} of tiles or several pages is no plain image")
    # Pillow reads 16-bit RGB as RGB, without a word.
    is_deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode not in EIGHT_BIT or is_deep:
        kind = "16-bit" if is_deep else image.mode
        raise UnsupportedPixelsError(f"slide {name}: its pixels are {kind}, not 8-bit grey or RGB; convert the image")
    if pixels > MOST_PIXELS:
        raise UnsupportedPixelsError(
            f"slide {name}: a plain image of {pixels / 1e6:.0f} million pixels is too large to be decoded whole (at "
            f"most {MOST_PIXELS / 1e6:.0f}); convert it to a tiled TIFF: "
            "`vips colourspace IN 'OUT.tif[tile,pyramid]' srgb`"
        )


def _rgb(image: Image.Image) -> RGB:
    if image.has_transparency_data:
        over_white = Image.new("RGBA", image.size, WHITE)
        over_white.alpha_composite(image.convert("RGBA"))
        return np.asarray(over_white.convert("RGB"))
    return np.asarray(image.convert("RGB"))
