"""Which coordinate file is whose: by name, and where the name is none of a slide, by what the file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py

from wsi_ips.errors import TileIndexError

SUFFIXES = (".h5", ".hdf5")
TRIDENT_ENDING = "_patches"


@dataclass(frozen=True)
class CoordinateFiles:
    """Files of a folder by slide.

    Attributes
    ----------
    folder
        Where they were looked for.
    by_slide
        Files of each slide_id; none, or several, is for the caller to refuse.
    unknown
        Files that belong to no slide of the manifest.
    """

    folder: Path
    by_slide: Mapping[str, tuple[Path, ...]]
    unknown: tuple[Path, ...]


def find_coordinates(folder: Path, names: Mapping[str, Sequence[str]]) -> CoordinateFiles:
    """Search a folder, and those in it, for the coordinate files of slides.

    Parameters
    ----------
    folder
        E.g. CLAM's ``patches``, or a run folder of TRIDENT; also a single file.
    names
        Per slide_id the names that files of it may have: the slide_id, and the slide's file name without ending.

    Raises
    ------
    TileIndexError
        No such folder, or no HDF5 file in it.
    """
    if not folder.exists():
        raise TileIndexError(f"{folder}: no such file or folder")
    root = folder if folder.is_dir() else folder.parent
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else [folder]
    if not files:
        raise TileIndexError(f"{folder}: no HDF5 file in it; give the folder with the coordinates of the tiles")
    owner = {name: slide_id for slide_id, known in names.items() for name in known}
    found: dict[str, list[Path]] = {}
    unknown = []
    for path in files:
        slide_id = owner.get(path.stem) or owner.get(path.stem.removesuffix(TRIDENT_ENDING)) or owner.get(_inner(path))
        if slide_id is None:
            unknown.append(path)
        else:
            found.setdefault(slide_id, []).append(path)
    return CoordinateFiles(root, {s: _preferred(paths) for s, paths in found.items()}, tuple(unknown))


def _preferred(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Of several files those without features: a feature file repeats the coordinates it was made from."""
    if len(paths) == 1:
        return tuple(paths)
    bare = tuple(path for path in paths if not holds(path, "features"))
    return bare or tuple(paths)


def holds(path: Path, dataset: str) -> bool:
    """Whether a file is HDF5 with a dataset (or group) of that name."""
    try:
        with h5py.File(path, "r") as file:
            return dataset in file
    except OSError:
        return False


def _inner(path: Path) -> str:
    """Name of the slide as the file says it, empty where it says none or is damaged."""
    try:
        with h5py.File(path, "r") as file:
            value = file["coords"].attrs.get("name", "") if "coords" in file else ""
    except OSError:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
