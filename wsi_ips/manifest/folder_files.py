"""Files in folders: those that become rows of a manifest, and those that no row names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import openslide

from wsi_ips.errors import ManifestError
from wsi_ips.manifest.slide_record import SlideRecord, named_slide
from wsi_ips.registry import registry

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = frozenset(
    [".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"]
)
IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg"])  # of plain images: slides only where a folder has no others
DICOM_SERIES = "dicom.SeriesInstanceUID"
INDEX_SUFFIXES = (".vms", ".vmu")  # Hamamatsu's index files name the image files beside them


@cache
def slide_suffixes() -> frozenset[str]:
    """Return the file name endings that count as slides in a folder: ours, and those of readers that are registered."""
    return SUFFIXES.union(*(entry.suffixes for entry in registry("readers").values()))


@dataclass(frozen=True)
class Discovery:
    """Contents of a folder."""

    table: pd.DataFrame  # the manifest, one row per slide; paths are absolute
    left_out: tuple[Path, ...]  # files that are in no row, for a person to check


def files_of_folders(folders: Iterable[Path], *, deep: bool) -> list[Path]:
    """Return the files of folders (``deep``: and subfolders) as :func:`all_files` does; missing folders have none."""
    found = set[Path]()
    for folder in folders:
        if folder.is_dir():
            found.update(all_files(folder) if deep else _without_companions(p for p in folder.resolve().iterdir()))
    return sorted(found)


def all_files(folder: Path) -> list[Path]:
    """Return all files, absolute and sorted, without hidden ones and without the folders of .mrxs slides."""
    if not folder.is_dir():
        raise ManifestError(f"folder {folder}: no such folder")
    return _without_companions(_walk(folder.resolve()))


def _without_companions(paths: Iterable[Path]) -> list[Path]:
    files = sorted(file for file in paths if not file.name.startswith(".") and not file.is_dir())
    companions = {file.with_suffix("") for file in files if file.suffix.lower() == ".mrxs"}
    return [file for file in files if companions.isdisjoint(file.parents)]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files of all subfolders; follow links, for slides on other disks, but visit each folder once."""
    seen = set[tuple[int, int]]()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in names)


def slide_table(rows: Sequence[dict[str, Any]], folder: Path) -> pd.DataFrame:
    """Return the rows as a manifest; each is checked as if it had been read from a file."""
    if not rows:
        known = ", ".join(sorted(slide_suffixes() | IMAGE_SUFFIXES))
        raise ManifestError(f"folder {folder}: no slide in it; known endings: {known}")
    first: dict[str, Path] = {}
    for row in rows:
        name, path = row["slide_id"], row["path"]
        other = first.setdefault(name.casefold(), path)
        if other != path:
            raise ManifestError(
                f"folder {folder}: {other} and {path} would both be slide `{name}`; rename one, or write a manifest "
                "with your own names"
            )
        named_slide(name, path)
    import pandas as pd

    table = pd.DataFrame(rows, dtype=object)
    return table.where(table.notna(), None)


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
    files of its DICOM series. ``own`` are the cohort's other files, ``series`` the DICOM series that have a row.
    """
    used = {p.resolve() for r in records for p in (r.path, r.annotation, r.coordinates) if isinstance(p, Path)}
    for path in [p for p in used if p.suffix.lower() in INDEX_SUFFIXES]:
        used |= set(_named_by(path))
    rest = [path for path in files_of_folders(folders, deep=deep) if path not in used and path not in own]
    alike = [path for path in rest if path.suffix.lower() in slide_suffixes()]
    slides = tuple(path for path in alike if not series or dicom_series(path) not in series)
    return Unlisted(slides, tuple(path for path in rest if path.suffix.lower() not in slide_suffixes()))


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
