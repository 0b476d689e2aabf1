"""Open a slide with the reader that fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from wsi_ips.errors import SlideNotFoundError, UnsupportedSlideError
from wsi_ips.geometry import Scale
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.tiffslide_reader import TiffSlideReader

READERS: dict[str, type[OpenSlideReader] | type[TiffSlideReader]] = {
    "openslide": OpenSlideReader,
    "tiffslide": TiffSlideReader,
}


def open_slide(
    path: Path,
    *,
    reader: Literal["auto", "openslide", "tiffslide"] = "auto",
    mpp_override: Scale | float | None = None,
) -> SlideReader:
    """Open a slide.

    Parameters
    ----------
    path
        The slide's file.
    reader
        ``auto`` takes the first reader that opens the file: OpenSlide, then TiffSlide.
    mpp_override
        µm per level-0 pixel; wins over what the file says.

    Raises
    ------
    SlideNotFoundError
        There is no such file.
    UnsupportedSlideError
        No reader opens it; the message says what each found.
    """
    path = Path(path)
    if not path.exists():
        raise SlideNotFoundError(f"slide {path}: no such file; correct column `path` of the manifest")
    if path.is_file() and path.stat().st_size == 0:
        raise UnsupportedSlideError(f"slide {path.name}: the file is empty (0 bytes); copy it again")
    scale = Scale(mpp_override, mpp_override) if isinstance(mpp_override, int | float) else mpp_override
    refusals = []
    for name in READERS if reader == "auto" else [reader]:
        try:
            return READERS[name](path, mpp_override=scale)
        except UnsupportedSlideError as error:
            refusals.append(str(error).removeprefix(f"slide {path.name}: "))
    raise UnsupportedSlideError(
        f"slide {path.name}: no reader opens it ({'; '.join(refusals)}); it is damaged or no slide: copy it "
        "again or leave it out"
    )
