"""Read a coordinate file: which tool wrote it is seen from the attributes it has.

Formats as the tools write them; whole numbers come as int64 or float64, coordinates of old files as floats.
Nothing of a file is executed, and attributes that are not named here are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import TileIndexError
from wsi_ips.geometry import Scale, Size
from wsi_ips.tiles.interop.foreign import ForeignTiles

WHOLE = 1e-3
"""Largest distance from a whole number of a coordinate that is stored as a float."""
IDENTITY = "wsi_ips_slide_identity"
KNOWN = "CLAM (patch_level, downsample), TRIDENT (patch_size_level0), WSInfer (patch_spacing_um_px), AtlasPatch"
GEOMETRY = frozenset({"patch_level", "patch_size_level0", "patch_spacing_um_px"})
"""Attributes one of which says how large a tile is."""


def read_foreign(path: Path) -> ForeignTiles:
    """Tiles in a coordinate file of CLAM, TRIDENT, WSInfer or AtlasPatch.

    Parameters
    ----------
    path
        HDF5 file with dataset ``coords``.

    Raises
    ------
    TileIndexError
        No such file, no coordinates in it, of no known tool, or with values that cannot be; names file and value.
    """
    try:
        with h5py.File(path, "r") as file:
            if "coords" not in file or not isinstance(file["coords"], h5py.Dataset):
                raise TileIndexError(f"{path}: no dataset `coords` in it; give the tool's files of patch coordinates")
            dataset = file["coords"]
            coords = np.asarray(dataset[()])
            stated = {**dict(file.attrs), **dict(dataset.attrs)}
    except OSError as error:
        raise TileIndexError(f"{path}: cannot be read as HDF5 ({error})") from error
    return _parsed(_Attributes(path, stated), coords)


def _parsed(stated: _Attributes, coords: NDArray[Any]) -> ForeignTiles:
    if coords.ndim == 2 and coords.shape[1] == 5 and "patch_size_level0" in stated.values:
        return _atlaspatch(stated, coords)
    if "patch_size_level0" in stated.values:
        return _trident(stated, coords)
    if "patch_spacing_um_px" in stated.values:
        return _wsinfer(stated, coords)
    if {"patch_level", "downsample"} <= stated.values.keys():
        return _clam(stated, coords)
    raise TileIndexError(
        f"{stated.path}: the coordinates say neither level nor size of a patch, so nobody can place them. Known are "
        f"{KNOWN}; feature files of CLAM hold no geometry: give its folder `patches`"
    )


def _clam(stated: _Attributes, coords: NDArray[Any]) -> ForeignTiles:
    read_px, downsample = stated.whole("patch_size"), stated.pair("downsample")
    width, height = stated.pair("level_dim") if "level_dim" in stated.values else (0, 0)
    shrink = stated.whole("custom_downsample", 1)
    if read_px % shrink:
        raise stated.wrong("custom_downsample", f"does not divide patch_size = {read_px}")
    return ForeignTiles(
        "clam",
        whole_corners(stated.path, coords, 2),
        patch_px=read_px // shrink,
        footprint_px0=Scale(read_px * downsample.x, read_px * downsample.y),
        level=stated.whole("patch_level", least=0),
        read_px=read_px,
        level_size=Size(round(width), round(height)) if width else None,
        downsample=downsample,
        name=stated.text("name"),
        identity=stated.text(IDENTITY),
    )


def _trident(stated: _Attributes, coords: NDArray[Any]) -> ForeignTiles:
    side = stated.number("patch_size_level0")
    size = [stated.whole(name, 0, least=0) for name in ("level0_width", "level0_height")]
    return ForeignTiles(
        "trident",
        whole_corners(stated.path, coords, 2),
        patch_px=stated.whole("patch_size"),
        footprint_px0=Scale(side, side),
        size_px0=Size(*size) if all(size) else None,
        magnification=(stated.number("level0_magnification"), stated.number("target_magnification")),
        overlap_px=stated.whole("overlap", 0, least=None),
        name=stated.text("name"),
        identity=stated.text(IDENTITY),
    )


def _wsinfer(stated: _Attributes, coords: NDArray[Any]) -> ForeignTiles:
    if stated.whole("patch_level", 0, least=0):
        raise stated.wrong("patch_level", "WSInfer counts in pixels of level 0")
    side = stated.number("patch_size")
    return ForeignTiles(
        "wsinfer",
        whole_corners(stated.path, coords, 2),
        patch_px=None,
        footprint_px0=Scale(side, side),
        spacing_mpp=stated.number("patch_spacing_um_px"),
    )


def _atlaspatch(stated: _Attributes, coords: NDArray[Any]) -> ForeignTiles:
    """Columns x, y, width and height to read, level; all tiles of a slide are read alike."""
    side = stated.number("patch_size_level0")
    corners = whole_corners(stated.path, coords[:, :2], 2)
    ways = np.unique(whole_corners(stated.path, coords[:, 2:], 3), axis=0)
    if len(ways) > 1:
        raise TileIndexError(f"{stated.path}: tiles of different size or level: {ways[:3].tolist()}; one is expected")
    width, height, level = ways[0].tolist() if len(ways) else (None, None, None)
    if width != height:
        raise TileIndexError(f"{stated.path}: tiles of {width} x {height} px; only square ones can be used")
    return ForeignTiles(
        "atlaspatch",
        corners,
        patch_px=stated.whole("patch_size"),
        footprint_px0=Scale(side, side),
        level=level,
        read_px=width,
        name=stated.text("name"),
    )


def whole_corners(path: Path, coords: NDArray[Any], columns: int) -> NDArray[np.int64]:
    """Coordinates as int64, shape (N, columns); floats must be whole."""
    if coords.size == 0:
        return np.empty((0, columns), np.int64)
    if coords.ndim != 2 or coords.shape[1] != columns or coords.dtype.kind not in "iuf":
        raise TileIndexError(f"{path}: coords of shape {coords.shape} and type {coords.dtype}; (N, {columns}) expected")
    rounded = np.rint(coords)
    if coords.dtype.kind == "f" and not (np.abs(coords - rounded) < WHOLE).all():  # also false for NaN
        raise TileIndexError(f"{path}: coordinates that are no whole pixels of level 0")
    return np.asarray(rounded, np.int64)


class _Attributes:
    """Attributes of a file by name, each as the type that is asked for."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, values

    def wrong(self, name: str, why: str) -> TileIndexError:
        return TileIndexError(f"{self.path}: attribute `{name}` = {self.values.get(name)}: {why}")

    def number(self, name: str) -> float:
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
        if name not in self.values and default is not None:
            return default
        raw = np.asarray(self.values.get(name))
        if raw.size == 1 and raw.dtype.kind in "iuf" and np.isfinite(raw.item()) and raw.item() == round(raw.item()):
            value = int(raw.item())
            if least is None or value >= least:
                return value
        raise self.wrong(name, "a whole number is expected" + ("" if least is None else f", at least {least}"))

    def pair(self, name: str) -> Scale:
        raw = np.asarray(self.values[name])
        if raw.shape != (2,) or raw.dtype.kind not in "iuf" or not (np.isfinite(raw) & (raw > 0)).all():
            raise self.wrong(name, "two numbers above 0 are expected")
        return Scale(float(raw[0]), float(raw[1]))

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else None if value is None else str(value)
