"""Coordinate files of other tools: find those of each slide, recognise their format, and read them.

Whole numbers come as int64 or float64, and coordinates of old files as floats. Nothing in a file is executed, and
unknown attributes are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import TileIndexError, WsiIpsError
from wsi_ips.geometry import Scale, Size
from wsi_ips.tiles.interop.tile_formats import TILE_FORMATS, ForeignTiles

SUFFIXES = (".h5", ".hdf5")
TRIDENT_ENDING = "_patches"
WHOLE = 1e-3  # largest distance from a whole number of a coordinate that is stored as a float


def read_foreign(path: Path) -> ForeignTiles:
    """Read the tiles in an HDF5 file with dataset ``coords`` of a format in :data:`TILE_FORMATS`."""
    try:
        with h5py.File(path, "r") as file:
            if "coords" not in file or not isinstance(file["coords"], h5py.Dataset):
                raise TileIndexError(f"{path}: no dataset `coords` in it; give the tool's files of patch coordinates")
            dataset = file["coords"]
            coords = np.asarray(dataset[()])
            stated = {**dict(file.attrs), **dict(dataset.attrs)}
    except OSError as error:
        raise TileIndexError(f"{path}: cannot be read as HDF5 ({error})") from error
    columns = coords.shape[1] if coords.ndim == 2 else None
    # Later formats are more specific: AtlasPatch has TRIDENT's attributes and more columns.
    for entry in reversed(list(TILE_FORMATS.values())):
        if set(entry.marks) <= stated.keys() and entry.columns in (None, columns):
            found: ForeignTiles = entry.load()().read(Attributes(path, stated), coords)
            return found
    known = "; ".join(f"{entry.title} ({', '.join(entry.marks)})" for entry in TILE_FORMATS.values())
    raise TileIndexError(
        f"{path}: the coordinates state neither level nor size of a patch, so they cannot be placed. Known are "
        f"{known}; feature files of CLAM hold no geometry: give its folder `patches`"
    )


def states_tile_size(names: set[str]) -> bool:
    """Tell whether one of these attributes states how large a tile is."""
    return any(entry.marks[0] in names for entry in TILE_FORMATS.values())


def whole_corners(path: Path, coords: NDArray[Any], columns: int) -> NDArray[np.int64]:
    """Return coordinates as int64, shape (N, columns); floats must be whole numbers."""
    if coords.size == 0:
        return np.empty((0, columns), np.int64)
    if coords.ndim != 2 or coords.shape[1] != columns or coords.dtype.kind not in "iuf":
        raise TileIndexError(f"{path}: coords of shape {coords.shape} and type {coords.dtype}; (N, {columns}) expected")
    rounded = np.rint(coords)
    if coords.dtype.kind == "f" and not (np.abs(coords - rounded) < WHOLE).all():  # also false for NaN
        raise TileIndexError(f"{path}: coordinates that are not whole pixels of level 0")
    return np.asarray(rounded, np.int64)


def require_on_slide(
    where: str,
    corners_px0: NDArray[np.int64],
    size_px0: Size,
    *,
    stated: Size | None,
    error: type[WsiIpsError] = TileIndexError,
) -> None:
    """Refuse tiles of a slide whose stated size is another one, or that begin outside the slide."""
    size = f"{size_px0.width} x {size_px0.height}"
    if stated is not None and stated != size_px0:
        raise error(
            f"{where}: the file says level 0 has {stated[0]} x {stated[1]} px, the slide has {size}; the tiles belong "
            "to another slide"
        )
    outside = (corners_px0 < 0).any(1) | (corners_px0 >= np.array(size_px0)).any(1)
    if outside.any():
        raise error(
            f"{where}: {outside.sum()} of {len(corners_px0)} tiles begin outside the slide of {size} px, e.g. at "
            f"{tuple(corners_px0[outside][0].tolist())}; the tiles belong to another slide"
        )


class Attributes:
    """Attributes of a file, each read as a requested type; an attribute of another type raises TileIndexError."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, values

    def wrong(self, name: str, why: str) -> TileIndexError:
        """Return the error for an attribute."""
        return TileIndexError(f"{self.path}: attribute `{name}` = {self.values.get(name)}: {why}")

    def number(self, name: str) -> float:
        """Return a number above 0."""
        if name not in self.values:
            raise TileIndexError(
                f"{self.path}: attribute `{name}` is missing; the file is damaged or of another version"
            )
        try:
            value = float(np.asarray(self.values[name]).item())
        except (TypeError, ValueError) as error:
            raise self.wrong(name, "a number is expected") from error
        if not (np.isfinite(value) and value > 0):
            raise self.wrong(name, "must be above 0")
        return value

    def whole(self, name: str, default: int | None = None, *, least: int | None = 1) -> int:
        """Return a whole number, ``default`` where it is missing."""
        if name not in self.values and default is not None:
            return default
        raw = np.asarray(self.values.get(name))
        if raw.size == 1 and raw.dtype.kind in "iuf" and np.isfinite(raw.item()) and raw.item() == round(raw.item()):
            value = int(raw.item())
            if least is None or value >= least:
                return value
        raise self.wrong(name, "a whole number is expected" + ("" if least is None else f", at least {least}"))

    def pair(self, name: str) -> Scale:
        """Return two numbers above 0."""
        raw = np.asarray(self.values[name])
        if raw.shape != (2,) or raw.dtype.kind not in "iuf" or not (np.isfinite(raw) & (raw > 0)).all():
            raise self.wrong(name, "two numbers above 0 are expected")
        return Scale(float(raw[0]), float(raw[1]))

    def text(self, name: str) -> str | None:
        """Return a text, None where it is missing."""
        value = self.values.get(name)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else None if value is None else str(value)


@dataclass(frozen=True)
class CoordinateFiles:
    """Files of a folder by slide."""

    folder: Path  # folder that was searched
    by_slide: Mapping[str, tuple[Path, ...]]  # files of each slide_id; several are for the caller to refuse
    unknown: tuple[Path, ...]  # files that belong to no slide of the manifest


def find_coordinates(folder: Path, names: Mapping[str, Sequence[str]]) -> CoordinateFiles:
    """Search a folder and its subfolders for the coordinate files of slides."""
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
    """Prefer files without features: a feature file repeats the coordinates it was made from."""
    if len(paths) == 1:
        return tuple(paths)
    bare = tuple(path for path in paths if not holds(path, "features"))
    return bare or tuple(paths)


def holds(path: Path, dataset: str) -> bool:
    """Tell whether a file is HDF5 with a dataset (or group) of that name."""
    try:
        with h5py.File(path, "r") as file:
            return dataset in file
    except OSError:
        return False


def _inner(path: Path) -> str:
    """Return the slide's name as the file states it, empty where it states none or is damaged."""
    try:
        with h5py.File(path, "r") as file:
            value = file["coords"].attrs.get("name", "") if "coords" in file else ""
    except OSError:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
