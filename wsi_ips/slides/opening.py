"""Open a slide with the reader that fits it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from wsi_ips.errors import SlideNotFoundError, UnsupportedSlideError
from wsi_ips.geometry import Scale
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.cache import TileCache
from wsi_ips.slides.direct_reader import DirectReader
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.tiffslide_reader import TiffSlideReader

ReaderName = Literal["auto", "direct", "openslide", "tiffslide"]


def open_slide(
    path: Path,
    *,
    reader: ReaderName = "auto",
    mpp_override: Scale | float | None = None,
    cache: TileCache | None = None,
) -> SlideReader:
    """Open a slide.

    Parameters
    ----------
    path
        The slide's file.
    reader
        ``auto`` takes the first that opens the file, OpenSlide, then TiffSlide, and reads its pixels directly
        where they are stored as JPEG tiles; ``direct`` refuses all other slides; ``openslide`` and
        ``tiffslide`` do everything themselves.
    mpp_override
        µm per level-0 pixel; wins over what the file says.
    cache
        Shared by the slides that are open at a time.

    Returns
    -------
    SlideReader
        ``info.pixels_by`` says who decodes the pixels, and why.

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
    base = _open_base(path, reader, scale, cache)
    if reader in ("openslide", "tiffslide"):
        return base
    try:
        return DirectReader(path, base, cache=cache)
    except UnsupportedSlideError as error:
        if reader == "direct":
            base.close()
            raise
        return _with_reason(base, str(error).removeprefix(f"slide {path.name}: "))


def _open_base(
    path: Path, reader: ReaderName, scale: Scale | None, cache: TileCache | None
) -> OpenSlideReader | TiffSlideReader:
    refusals = []
    if reader != "tiffslide":
        try:
            return OpenSlideReader(path, mpp_override=scale, cache=cache)
        except UnsupportedSlideError as error:
            refusals.append(str(error).removeprefix(f"slide {path.name}: "))
    if reader != "openslide":
        try:
            return TiffSlideReader(path, mpp_override=scale)
        except UnsupportedSlideError as error:
            refusals.append(str(error).removeprefix(f"slide {path.name}: "))
    raise UnsupportedSlideError(
        f"slide {path.name}: no reader opens it ({'; '.join(refusals)}); it is damaged or no slide: copy it "
        "again or leave it out"
    )


def _with_reason(base: OpenSlideReader | TiffSlideReader, reason: str) -> SlideReader:
    """The same reader; its header facts say why it decodes the pixels itself."""
    base.info = replace(base.info, pixels_by=f"{base.info.reader}: {reason}")
    return base
