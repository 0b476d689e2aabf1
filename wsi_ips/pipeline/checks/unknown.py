"""Files beside the slides that are in no row of the manifest, and those that are part of a slide that is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import openslide

from wsi_ips.manifest import SLIDE_SUFFIXES, SlideRecord, files_of_folders

SERIES = "dicom.SeriesInstanceUID"
INDEX_SUFFIXES = (".vms", ".vmu")
"""Hamamatsu's index files name the image files beside them."""


class Unknown(NamedTuple):
    """Files in no row.

    Attributes
    ----------
    slides
        Those that have a slide's ending.
    others
        All others.
    """

    slides: tuple[Path, ...]
    others: tuple[Path, ...]


def unknown_files(
    folders: Sequence[Path],
    records: Sequence[SlideRecord],
    *,
    deep: bool,
    own: frozenset[Path] = frozenset(),
    series: frozenset[str] = frozenset(),
) -> Unknown:
    """Files of some folders that no row names and no row's slide is made of.

    Parts of a slide are: the folder of a ``.mrxs`` (of its name), the files that a ``.vms`` or ``.vmu`` names, and
    the files
    of a DICOM series of which one is in a row.

    Parameters
    ----------
    folders
        Where to look.
    records
        Rows of the manifest.
    deep
        Also in the folders in them.
    own
        Files that are known otherwise.
    series
        DICOM series that are in a row.
    """
    used = {p.resolve() for r in records for p in (r.path, r.annotation, r.coordinates) if isinstance(p, Path)}
    for path in [p for p in used if p.suffix.lower() in INDEX_SUFFIXES]:
        used |= set(_named_by(path))
    rest = [path for path in files_of_folders(folders, deep=deep) if path not in used and path not in own]
    alike = [path for path in rest if path.suffix.lower() in SLIDE_SUFFIXES]
    slides = [path for path in alike if not (series and _is_of(path, series))]
    return Unknown(tuple(slides), tuple(path for path in rest if path.suffix.lower() not in SLIDE_SUFFIXES))


def _named_by(index: Path) -> Iterator[Path]:
    """Files that an index file names (lines ``key=value``) and that lie beside it."""
    try:
        text = index.read_bytes().decode("latin-1")
    except OSError:
        return
    for value in re.findall(r"=\s*(.+?)\s*$", text, re.MULTILINE):
        path = index.parent / value.replace("\\", "/")
        if path.is_file():
            yield path.resolve()


def _is_of(path: Path, series: frozenset[str]) -> bool:
    """Whether this is a file of one of these DICOM series."""
    return dicom_series(path) in series


def dicom_series(path: Path) -> str | None:
    """The DICOM series that a file is of, all files of which are one slide; None for others."""
    if path.suffix.lower() != ".dcm":
        return None
    try:
        with openslide.OpenSlide(path) as slide:
            return slide.properties.get(SERIES)
    except openslide.OpenSlideError:
        return None
