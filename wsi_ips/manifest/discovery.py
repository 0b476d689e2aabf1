"""Manifests from folders: any folder of slides, and CAMELYON16.

What is left out is said, never skipped in silence.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from wsi_ips.errors import ManifestError
from wsi_ips.manifest.record import SlideRecord

if TYPE_CHECKING:
    import pandas as pd

SLIDE_SUFFIXES = frozenset(
    [".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"]
)
"""File names that are taken for slides when a folder is searched."""

CAMELYON16_DUPLICATES = frozenset(["test_049"])
"""Withdrawn by the organisers; where the file is still there it is left out."""

CAMELYON16_INCOMPLETE = frozenset(
    ["test_114"]
    + [
        f"tumor_{number:03d}"
        for number in (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)
    ]
)
"""Not every lesion is outlined: what lies outside the outlines must not count as free of tumour."""

SHOWN = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Discovery:
    """What a folder holds.

    Attributes
    ----------
    table
        The manifest, one row per slide; paths are absolute.
    left_out
        Files that are in no row, for a person to look at.
    """

    table: pd.DataFrame
    left_out: tuple[Path, ...]


def discover(folder: Path) -> Discovery:
    """What a folder holds: CAMELYON16 where it looks like it, else every slide file.

    Raises
    ------
    ManifestError
        No slide is found, or two files would have one slide_id.
    """
    is_camelyon16 = (folder / "training").is_dir() or (folder / "testing").is_dir()
    return discover_camelyon16(folder) if is_camelyon16 else discover_folder(folder)


def discover_slides(folder: Path) -> pd.DataFrame:
    """Manifest of a folder, as :func:`discover` finds it; logs what is left out.

    Parameters
    ----------
    folder
        The folder; paths in the result are absolute.

    Raises
    ------
    ManifestError
        No slide is found, or two files would have one slide_id.
    """
    found = discover(folder)
    if found.left_out:
        kinds = Counter(file.suffix.lower() or "no ending" for file in found.left_out)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        names = _few([str(file.relative_to(folder.resolve())) for file in found.left_out])
        log.warning("folder %s: files that are in no row of the manifest: %s (%s)", folder, counts, names)
    return found.table


def discover_folder(folder: Path) -> Discovery:
    """Every slide file of a folder and of the folders in it; the slide_id is the name without its ending.

    Raises
    ------
    ManifestError
        No slide is found, two files would have one slide_id, or a name cannot be a slide_id.
    """
    files = _files(folder)
    slides = [file for file in files if file.suffix.lower() in SLIDE_SUFFIXES]
    table = _table([{"slide_id": file.stem, "path": file} for file in slides], folder)
    return Discovery(table, tuple(file for file in files if file not in set(slides)))


def discover_camelyon16(folder: Path) -> Discovery:
    """CAMELYON16 as it is distributed, with its own split into training and testing.

    Slides under ``training/normal``, ``training/tumor`` and ``testing``; labels of test slides from
    ``testing/reference.csv`` (None without it); outlines from every ``.xml`` named like a slide, except those of
    `CAMELYON16_INCOMPLETE`. Masks are left out.

    Raises
    ------
    ManifestError
        No slide is found, outlines are still packed or stand there twice, or ``reference.csv`` misses slides.
    """
    files = _files(folder)
    root = folder.resolve()
    outlines = _outlines(files, root)
    reference, labels = _reference(files, root)
    rows: list[dict[str, Any]] = []
    for part, label, split in (
        ("training/normal", "normal", "train"),
        ("training/tumor", "tumor", "train"),
        ("testing", None, "test"),
    ):
        for file in _slides_of(files, root / part):
            name = file.stem.lower()
            outline = None if name in CAMELYON16_INCOMPLETE else outlines.get(name)
            known = labels.get(name) if label is None else label
            rows.append({"slide_id": file.stem, "path": file, "label": known, "split": split, "annotation": outline})
    unknown = [row["slide_id"] for row in rows if row["label"] is None]
    if unknown and reference:
        raise ManifestError(f"{reference}: no row `NAME,Normal` or `NAME,Tumor` for {_few(unknown)}; complete the file")
    table = _table(rows, folder)
    used = {*table["path"], *table["annotation"], reference}
    return Discovery(table, tuple(file for file in files if file not in used))


def files_of_folders(folders: Iterable[Path], *, deep: bool) -> list[Path]:
    """All files of some folders, absolute and sorted, but for hidden ones and the parts of a .mrxs.

    Parameters
    ----------
    folders
        Where to look; one that is not there holds nothing.
    deep
        Also in the folders in them.
    """
    found = set[Path]()
    for folder in folders:
        if folder.is_dir():
            found.update(_files(folder) if deep else _without_companions(p for p in folder.resolve().iterdir()))
    return sorted(found)


def _files(folder: Path) -> list[Path]:
    """All files, absolute and sorted, but for hidden ones and the parts of a .mrxs (in a folder of its name)."""
    if not folder.is_dir():
        raise ManifestError(f"folder {folder}: no such folder")
    return _without_companions(_walk(folder.resolve()))


def _without_companions(paths: Iterable[Path]) -> list[Path]:
    files = sorted(file for file in paths if not file.name.startswith(".") and not file.is_dir())
    companions = {file.with_suffix("") for file in files if file.suffix.lower() == ".mrxs"}
    return [file for file in files if companions.isdisjoint(file.parents)]


def _walk(folder: Path) -> Iterator[Path]:
    """Files of all folders, also of linked ones: slides often lie on another disk. A ring of links is walked once."""
    seen = set[tuple[int, int]]()
    for place, folders, names in os.walk(folder, followlinks=True):
        facts = os.stat(place)
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in names)


def _slides_of(files: Sequence[Path], part: Path) -> list[Path]:
    return [
        file
        for file in files
        if part in file.parents
        and file.suffix.lower() in (".tif", ".tiff")
        and not any("mask" in name.lower() for name in file.relative_to(part).parts)
        and file.stem.lower() not in CAMELYON16_DUPLICATES
    ]


def _outlines(files: Sequence[Path], root: Path) -> dict[str, Path]:
    """Annotation files by lower-case slide name."""
    outlines: dict[str, Path] = {}
    for file in files:
        if file.suffix.lower() != ".xml":
            continue
        other = outlines.setdefault(file.stem.lower(), file)
        if other != file:
            raise ManifestError(f"folder {root}: two annotations of one slide, {other} and {file}; keep one")
    for archive in files:
        if re.fullmatch(r".*annotations.*\.zip", archive.name, re.IGNORECASE):
            unpacked = any(archive.parent in file.parents for file in outlines.values())
            if not unpacked:
                raise ManifestError(f"{archive}: unpack it beside itself first, else no slide has its outlines")
    return outlines


def _reference(files: Sequence[Path], root: Path) -> tuple[Path | None, Mapping[str, str]]:
    """``reference.csv`` and the labels in it; rows are ``test_001,Tumor,...`` with or without a header."""
    path = next((f for f in files if f.name.lower() == "reference.csv" and root / "testing" in f.parents), None)
    if path is None:
        return None, {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text; fetch it again or save it as `CSV UTF-8`") from error
    cells = [[cell.strip(' "').lower() for cell in re.split("[,;]", line)] for line in lines]
    labels = {row[0].removesuffix(".tif"): row[1] for row in cells if len(row) > 1 and row[1] in ("normal", "tumor")}
    return path, labels


def _table(rows: Sequence[dict[str, Any]], folder: Path) -> pd.DataFrame:
    """Rows as a manifest, each checked as if it had been read from a file."""
    if not rows:
        raise ManifestError(f"folder {folder}: no slide in it; known endings: {', '.join(sorted(SLIDE_SUFFIXES))}")
    first: dict[str, Path] = {}
    for row in rows:
        name, path = row["slide_id"], row["path"]
        other = first.setdefault(name.casefold(), path)
        if other != path:
            raise ManifestError(
                f"folder {folder}: {other} and {path} would both be slide `{name}`; rename one, or write a manifest "
                "with names of your own"
            )
        try:
            SlideRecord.model_validate(row)
        except ValidationError as error:
            text = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ManifestError(f"folder {folder}: the name of {path} {text}") from error
    import pandas as pd

    table = pd.DataFrame(rows, dtype=object)
    return table.where(table.notna(), None)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
