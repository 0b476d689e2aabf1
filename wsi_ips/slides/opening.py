"""Open a slide with the reader that fits it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from wsi_ips.errors import SlideNotFoundError, UnsupportedSlideError
from wsi_ips.geometry import Scale
from wsi_ips.slides.base import SlideReader
from wsi_ips.slides.cache import TileCache
from wsi_ips.slides.direct_reader import DirectReader
from wsi_ips.slides.openslide_reader import OpenSlideReader
from wsi_ips.slides.pixel_kind import require_rgb
from wsi_ips.slides.source import ByteSource, LocalFile, RemoteFile, is_url, slide_name
from wsi_ips.slides.tiffslide_reader import TiffSlideReader

ReaderName = Literal["auto", "direct", "openslide", "tiffslide"]


class Remote(NamedTuple):
    """How patient one is with a slide behind a URL.

    Attributes
    ----------
    timeout_s
        Seconds after which an attempt over HTTP is given up.
    attempts
        How often a read is tried.
    """

    timeout_s: float = 30.0
    attempts: int = 3


PATIENT = Remote()


def open_slide(
    path: Path | str,
    *,
    reader: ReaderName = "auto",
    mpp_override: Scale | float | None = None,
    cache: TileCache | None = None,
    remote: Remote = PATIENT,
) -> SlideReader:
    """Open a slide.

    Parameters
    ----------
    path
        The slide's file, or a URL that fsspec knows (``https://``, ``s3://``, ``gs://``): TiffSlide opens it, and
        its tiles are read by ranges.
    reader
        ``auto`` takes the first that opens the file, OpenSlide, then TiffSlide, and reads its pixels directly
        where they are stored as JPEG tiles; ``direct`` refuses all other slides; ``openslide`` and
        ``tiffslide`` do everything themselves.
    mpp_override
        µm per level-0 pixel; wins over what the file says.
    cache
        Shared by the slides that are open at a time.
    remote
        How patient to be with a URL.

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
    RegionReadError
        The server of a URL does not answer, or refuses.
    """
    scale = Scale(mpp_override, mpp_override) if isinstance(mpp_override, int | float) else mpp_override
    source = open_source(path, remote)
    name = slide_name(path)
    try:
        base = _open_base(path, name, source, reader, scale)
    except BaseException:
        source.close()
        raise
    try:
        if reader in ("auto", "direct"):
            return DirectReader(base, source, cache=cache)
    except UnsupportedSlideError as error:
        if reader == "direct":
            base.close()
            source.close()
            raise
        base.info = replace(base.info, pixels_by=f"{base.info.reader}: {_reason(error, name)}")
    if isinstance(base, OpenSlideReader):
        source.close()  # it has the file open itself
        if cache is not None:
            base.share(cache)
    return base


def open_source(path: Path | str, remote: Remote = PATIENT) -> ByteSource:
    """The bytes of a slide's file.

    Raises
    ------
    SlideNotFoundError
        There is no such file.
    UnsupportedSlideError
        The file is empty, or may not be opened.
    RegionReadError
        The server of a URL does not answer, or refuses.
    """
    source: ByteSource
    if is_url(path):
        source = RemoteFile(str(path), timeout_s=remote.timeout_s, attempts=remote.attempts)
    else:
        try:
            source = LocalFile(Path(path))
        except FileNotFoundError as error:
            raise SlideNotFoundError(f"slide {path}: no such file; correct column `path` of the manifest") from error
        except OSError as error:
            raise UnsupportedSlideError(f"slide {path}: cannot be opened ({error.strerror})") from error
    if source.size == 0:
        source.close()
        raise UnsupportedSlideError(f"slide {slide_name(path)}: the file is empty (0 bytes); copy it again")
    return source


def _open_base(
    path: Path | str, name: str, source: ByteSource, reader: ReaderName, scale: Scale | None
) -> OpenSlideReader | TiffSlideReader:
    refusals = []
    if reader != "tiffslide" and not is_url(path):
        try:
            return _openslide(Path(path), name, source, scale)
        except UnsupportedSlideError as error:
            refusals.append(_reason(error, name))
    if reader != "openslide":
        try:
            return TiffSlideReader(name, source, mpp_override=scale)
        except UnsupportedSlideError as error:
            refusals.append(_reason(error, name))
    found = "; ".join(dict.fromkeys(refusals))
    if is_url(path):
        raise UnsupportedSlideError(
            f"slide {name}: behind a URL only what TiffSlide opens can be read "
            f"({found or 'the recipe asks for OpenSlide'}); copy the slide to a disk"
        )
    raise UnsupportedSlideError(
        f"slide {name}: no reader opens it ({found}); it is damaged or no slide: copy it again or leave it out"
    )


def _openslide(path: Path, name: str, source: ByteSource, scale: Scale | None) -> OpenSlideReader:
    """OpenSlide shows any TIFF as RGB, also one of grey or 16-bit pixels: those are refused."""
    reader = OpenSlideReader(path, mpp_override=scale)
    if reader.info.properties.get("openslide.vendor") == "generic-tiff":
        try:
            require_rgb(name, source)
        except UnsupportedSlideError:
            reader.close()
            raise
    return reader


def _reason(error: UnsupportedSlideError, name: str) -> str:
    return str(error).removeprefix(f"slide {name}: ")
