"""Files beside the slides that no row of the manifest names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import openslide

from wsi_ips.manifest.folder_files import SLIDE_SUFFIXES, files_of_folders
from wsi_ips.manifest.slide_record import SlideRecord

DICOM_SERIES = "dicom.SeriesInstanceUID"
INDEX_SUFFIXES = (".vms", ".vmu")  # Hamamatsu's index files name the image files beside them


class Unlisted(NamedTuple):
    """Files in no row: those with the suffix of a slide, and all others."""

    slides: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()


def unlisted_files(
    folders: Sequence[Path],
    records: Sequence[SlideRecord],
    *,
    deep: bool,
    own: frozenset[Path] = frozenset(),
    series: frozenset[str] = frozenset(),
) -> Unlisted:
    """Find the files that no row names and no row's slide consists of.

    A slide also consists of the folder of a ``.mrxs`` file, the files that a ``.vms`` or ``.vmu`` file names, and all
    files of its DICOM series.
    """
    used = {p.resolve() for r in records for p in (r.path, r.annotation, r.coordinates) if isinstance(p, Path)}
    for path in [p for p in used if p.suffix.lower() in INDEX_SUFFIXES]:
        used |= set(_named_by(path))
    rest = [path for path in files_of_folders(folders, deep=deep) if path not in used and path not in own]
    alike = [path for path in rest if path.suffix.lower() in SLIDE_SUFFIXES]
    slides = [path for path in alike if not series or dicom_series(path) not in series]
    return Unlisted(tuple(slides), tuple(path for path in rest if path.suffix.lower() not in SLIDE_SUFFIXES))


def dicom_series(path: Path) -> str | None:
    """Return the DICOM series of a file (all files of one series are one slide), None for other files."""
    if path.suffix.lower() != ".dcm":
        return None
    try:
        with openslide.OpenSlide(path) as slide:
            return slide.properties.get(DICOM_SERIES)
    except openslide.OpenSlideError:
        return None


def _named_by(index: Path) -> Iterator[Path]:
    """Files beside an index file that its lines ``key=value`` name."""
    try:
        text = index.read_bytes().decode("latin-1")
    except OSError:
        return
    for value in re.findall(r"=\s*(.+?)\s*$", text, re.MULTILINE):
        path = index.parent / value.replace("\\", "/")
        if path.is_file():
            yield path.resolve()
