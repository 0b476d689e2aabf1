"""What the pixels of a TIFF are: read as RGB, others would be another picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import tifffile

from wsi_ips.errors import UnsupportedSlideError
from wsi_ips.slides.source import ByteSource, as_file


def require_rgb(name: str, source: ByteSource) -> None:
    """Refuse a TIFF whose first directory is not 8-bit RGB; see :func:`require_rgb_page`."""
    try:
        with tifffile.TiffFile(as_file(source, name), name=name) as tiff:
            page = tiff.pages.first
    except (tifffile.TiffFileError, ValueError, LookupError) as error:
        raise UnsupportedSlideError(f"slide {name}: its first directory cannot be read: {error}") from error
    require_rgb_page(name, page)


def require_rgb_page(name: str, page: Any) -> None:
    """Refuse a directory of a TIFF that does not hold 8-bit RGB, with or without an alpha channel.

    Parameters
    ----------
    name
        What messages call the slide.
    page
        ``tifffile.TiffPage``.

    Raises
    ------
    UnsupportedSlideError
        Says what the pixels are.
    """
    if page.dtype != np.uint8 or page.samplesperpixel not in (3, 4):
        raise UnsupportedSlideError(
            f"slide {name}: its pixels are {page.samplesperpixel} x {page.dtype}, not 8-bit RGB; this is no "
            "brightfield slide, leave it out"
        )
