"""The registry of slide readers, and ``open_slide``, which picks one.

To add a reader, write a class on :class:`wsi_ips.slides.base.SlideReader` and a function that opens it from a
:class:`SlideFile`, and list that function in :data:`READERS` (or, in another package, under the entry-point group
``wsi_ips.readers``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from wsi_ips.errors import UnsupportedPixelsError, UnsupportedSlideError, WsiIpsError
from wsi_ips.geometry import Scale
from wsi_ips.registry import Entry, Registry
from wsi_ips.slides.base import SlideReader, said
from wsi_ips.slides.direct_reader import DirectReader
from wsi_ips.slides.pool import TileCache
from wsi_ips.slides.source import PATIENT, ByteSource, Remote, is_url, open_source, slide_name
from wsi_ips.slides.tiff_header import Directory, TiffHeader, read_tiff_header


@dataclass(frozen=True)
class SlideFile:
    """A slide to open."""

    path: Path | str  # its file, or its URL
    name: str  # file name for messages
    source: ByteSource  # its bytes; `open_slide` closes them unless the reader `owns_source`
    mpp_override: Scale | None = None  # µm per level-0 pixel; replaces the value in the file
    cache: TileCache | None = None  # shared with other slides; `open_slide` calls `share` with it

    @cached_property
    def tiff(self) -> TiffHeader | None:
        """The directories of a TIFF; None for other files."""
        return read_tiff_header(self.source)


@dataclass(frozen=True)
class ReaderEntry(Entry):
    """A reader: ``home`` names a function ``SlideFile -> SlideReader`` that raises UnsupportedSlideError."""

    opens_urls: bool = False  # whether it reads through `SlideFile.source` and so opens slides behind a URL
    tried: bool = False  # whether `auto` tries it, in the order of the table
    suffixes: tuple[str, ...] = ()  # endings, such as `.png`, of files that a search of folders shall find for it


SYNTAX = re.compile(rb"\x02\x00\x10\x00UI.\x00([0-9.]+)", re.DOTALL)  # DICOM's transfer syntax (0002,0010)
SYNTAXES = {  # those that OpenSlide does not decode
    b"1.2.840.10008.1.2.4.57": "lossless JPEG",
    b"1.2.840.10008.1.2.4.70": "lossless JPEG",
    b"1.2.840.10008.1.2.4.80": "JPEG-LS",
    b"1.2.840.10008.1.2.4.81": "JPEG-LS",
    b"1.2.840.10008.1.2.4.201": "high-throughput JPEG 2000",
    b"1.2.840.10008.1.2.4.202": "high-throughput JPEG 2000",
    b"1.2.840.10008.1.2.4.203": "high-throughput JPEG 2000",
    b"1.2.840.10008.1.2.5": "run-length coded",
}
PLUGIN = "; a reader for it can be added, see docs/formats.md"
FORMS = {  # by the first bytes of the file
    b"ZISRAWFILE": f"Zeiss CZI of a kind that OpenSlide does not read{PLUGIN}",
    b"<DataObject ObjectType": f"Philips iSyntax{PLUGIN}",
    b"\0\0\0\x0cjP  ": f"a JPEG 2000 image{PLUGIN}",
    b"\x89HDF": f"HDF5{PLUGIN}",
}

LIBRARIES = "wsi_ips.slides.library_readers"
READERS: Registry[ReaderEntry] = Registry(
    "reader",
    (
        ReaderEntry(
            "auto",
            "wsi_ips.slides.readers:open_auto",
            "the first library that opens the file, with JPEG tiles read directly where possible",
            opens_urls=True,
        ),
        ReaderEntry(
            "direct",
            "wsi_ips.slides.readers:open_direct",
            "as `auto`, but refuses slides without such tiles",
            opens_urls=True,
        ),
        ReaderEntry("openslide", f"{LIBRARIES}:open_openslide", "OpenSlide decodes all", tried=True),
        ReaderEntry("tiffslide", f"{LIBRARIES}:open_tiffslide", "TiffSlide decodes all", opens_urls=True, tried=True),
        ReaderEntry(
            "image",
            "wsi_ips.slides.image_reader:open_image",
            "a plain image (PNG, JPEG, TIFF of one page, colour or grey), decoded whole",
            opens_urls=True,
            tried=True,
        ),
    ),
    group="wsi_ips.readers",
)


def open_slide(
    path: Path | str,
    *,
    reader: str = "auto",
    mpp_override: Scale | float | None = None,
    cache: TileCache | None = None,
    remote: Remote = PATIENT,
) -> SlideReader:
    """Open a slide; its ``info.pixels_by`` says what decodes the pixels, and why.

    Parameters
    ----------
    path
        The slide's file, or a URL that fsspec knows (``https://``, ``s3://``, ``gs://``), read by ranges.
    reader
        Name of an entry in :data:`READERS`.
    mpp_override
        µm per level-0 pixel; replaces the value in the file.
    cache
        Shared by the slides that are open at a time.
    remote
        Timeout and attempts for a URL.

    Raises
    ------
    SlideNotFoundError
        There is no such file.
    UnsupportedSlideError
        No reader opens it; the message says what each found. UnsupportedPixelsError where the file is valid, but of a
        kind that is not read.
    RegionReadError
        A tile that is checked on opening is damaged, or the server of a URL does not answer, or refuses.
    """
    entry = READERS[reader]
    scale = Scale(mpp_override, mpp_override) if isinstance(mpp_override, int | float) else mpp_override
    file = SlideFile(path, slide_name(path), open_source(path, remote), scale, cache)
    opened: SlideReader
    try:
        _refuse_loops(file)
        opened = _first_that_opens(file, [entry]) if entry.tried else _open(entry, file)
    except BaseException:
        file.source.close()
        raise
    if not opened.owns_source:
        file.source.close()
    if file.cache is not None:
        opened.share(file.cache)
    return opened


def open_auto(file: SlideFile) -> SlideReader:
    """Open a slide with the first library that can, and read its JPEG tiles directly where it has them."""
    base = _with_all_levels(file)
    if base.bytes_held:  # a plain image, which is decoded already
        return base
    try:
        return DirectReader(base, file.source, cache=file.cache)
    except UnsupportedSlideError as error:
        base.info = replace(base.info, pixels_by=f"{base.info.reader}: {_reason(error, file.name)}")
        return base
    except BaseException:
        base.close()
        raise


def open_direct(file: SlideFile) -> SlideReader:
    """Open a slide whose tiles can be read directly; refuse all others."""
    base = _with_all_levels(file)
    try:
        return DirectReader(base, file.source, cache=file.cache)
    except BaseException:
        base.close()
        raise


def _with_all_levels(file: SlideFile) -> SlideReader:
    """Open a slide with the first library that can; TiffSlide goes first where only it sees all levels.

    OME-TIFF keeps the coarser levels in SubIFDs, where OpenSlide does not look.
    """
    first = file.tiff.directories[0] if file.tiff and file.tiff.directories else None
    if first is not None and any(_is_level(child, first) for child in first.children):
        try:
            return _first_that_opens(file, [READERS["tiffslide"]])
        except UnsupportedSlideError:
            pass
    return _first_that_opens(file)


def _refuse_loops(file: SlideFile) -> None:
    if file.tiff is not None and file.tiff.loops:
        raise UnsupportedSlideError(
            f"slide {file.name}: its TIFF directories form a loop; it is damaged: copy it again or leave it out"
        )


def _open(entry: ReaderEntry, file: SlideFile) -> SlideReader:
    """Open a slide; whatever a library raises becomes an UnsupportedSlideError."""
    try:
        opened: SlideReader = entry.load()(file)
    except WsiIpsError:
        raise
    except Exception as error:  # libraries fail in ways that cannot be listed
        raise UnsupportedSlideError(f"slide {file.name}: {entry.name} refuses it: {said(error)}") from error
    return opened


def _first_that_opens(file: SlideFile, entries: Iterable[ReaderEntry] | None = None) -> SlideReader:
    """Open a slide with the first of the entries that can; by default with those that ``auto`` tries."""
    refusals, tried, is_valid = [], [entry for entry in READERS.values() if entry.tried], False
    for entry in tried if entries is None else entries:
        if is_url(file.path) and not entry.opens_urls:
            continue
        try:
            return _open(entry, file)
        except UnsupportedSlideError as error:
            refusals.append(_reason(error, file.name))
            is_valid = is_valid or isinstance(error, UnsupportedPixelsError)
    if form := _unread_form(file.source):
        refusals, is_valid = [form, *refusals], True
    found = "; ".join(dict.fromkeys(refusals))
    if is_url(file.path):
        able = " or ".join(f"`{entry.name}`" for entry in tried if entry.opens_urls)
        raise UnsupportedSlideError(
            f"slide {file.name}: behind a URL only slides that {able} opens can be read "
            f"({found or 'the recipe asks for another reader'}); copy the slide to a disk"
        )
    if is_valid:
        raise UnsupportedPixelsError(f"slide {file.name}: a valid file, but of a kind that is not read ({found})")
    raise UnsupportedSlideError(
        f"slide {file.name}: no reader opens it ({found}); it is damaged or not a slide: copy it again or leave it out"
    )


def _reason(error: UnsupportedSlideError, name: str) -> str:
    return str(error).removeprefix(f"slide {name}: ")


def _is_level(child: Directory, first: Directory) -> bool:
    """Return whether a SubIFD holds the image of its parent at a coarser scale."""
    (width, height), (whole_width, whole_height) = child.size, first.size
    shrinks = 0 < width < whole_width and 0 < height < whole_height
    return (
        shrinks and child.pixel_kind == first.pixel_kind and abs(width * whole_height / height / whole_width - 1) < 0.1
    )


def _unread_form(source: ByteSource) -> str:
    """Say what a valid file is that the readers here do not know; empty where that is not recognised."""
    start = source.read_at(0, min(source.size, 4096))
    if start[128:132] == b"DICM":
        found = SYNTAX.search(start)
        form = SYNTAXES.get(found[1], "") if found else ""
        return form and f"DICOM with {form} pixels, which OpenSlide does not decode{PLUGIN}"
    return next((form for magic, form in FORMS.items() if start.startswith(magic)), "")
