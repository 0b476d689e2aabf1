"""Tile formats of other tools: the registry, what a coordinate file says, and how to write one.

To add a format, write a subclass of :class:`ToolFormat` and list it in :data:`TILE_FORMATS` (or, in another package,
under the entry-point group ``wsi_ips.tile_formats``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import TileIndexError
from wsi_ips.geometry import Scale, Size
from wsi_ips.provenance import atomic_path
from wsi_ips.registry import Entry, Registry
from wsi_ips.tiles.index import TileIndex

WHOLE = 1e-3  # largest distance from a whole number of a coordinate that is stored as a float
IDENTITY = "wsi_ips_slide_identity"  # attribute with the content identity of the slide, in the files that we write


@dataclass(frozen=True)
class TileFormat(Entry):
    """A format; ``home`` names a :class:`ToolFormat`. If several match a file, the last counts."""

    marks: tuple[str, ...] = ()  # attributes by which a file is recognised; the first states the size of a tile
    columns: int | None = None  # columns of `coords` by which it is recognised; None where they do not matter
    writes: bool = False  # whether tiles and features can be exported in it


HOME, ONLY = "wsi_ips.tiles.interop.coordinate_formats", "coordinates only"
TILE_FORMATS: Registry[TileFormat] = Registry(
    "tile format",
    (
        TileFormat(
            "clam",
            f"{HOME}:Clam",
            "patches/NAME.h5; features in h5_files and pt_files",
            "CLAM",
            marks=("patch_level", "downsample"),
            writes=True,
        ),
        TileFormat("wsinfer", f"{HOME}:WSInfer", ONLY, "WSInfer", marks=("patch_spacing_um_px",)),
        TileFormat(
            "trident",
            f"{HOME}:Trident",
            "20x_256px_0px_overlap/patches/NAME_patches.h5; features in features_ENCODER",
            "TRIDENT",
            marks=("patch_size_level0",),
            writes=True,
        ),
        TileFormat("atlaspatch", f"{HOME}:AtlasPatch", ONLY, "AtlasPatch", marks=("patch_size_level0",), columns=5),
    ),
    group="wsi_ips.tile_formats",
)


@dataclass(frozen=True)
class ForeignTiles:
    """Tiles of one slide as another tool stored them; None where its format does not say."""

    format: str  # name in `TILE_FORMATS`
    corners_px0: NDArray[np.int64]  # (N, 2) top-left corners (x, y) in level-0 pixels, in the order of the file
    patch_px: int | None  # side as the tool passes it to its network; None where it follows from the slide's scale
    footprint_px0: Scale  # width and height of a tile in level-0 pixels
    level: int | None = None  # level of OpenSlide that is read
    read_px: int | None = None  # side read there
    level_size: Size | None = None  # size of that level as the file states it
    downsample: Scale | None = None  # level-0 pixels per pixel of that level, as the file states them
    size_px0: Size | None = None  # size of the slide's level 0
    spacing_mpp: float | None = None  # µm per patch pixel
    magnification: tuple[float, float] | None = None  # of level 0 and of the patches, in the tool's own steps
    identity: str | None = None  # content identity of the slide, in files that this package wrote


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


class ToolFormat:
    """Reader and writer of a tool's files; formats that are not written keep the defaults of the writers."""

    def read(self, stated: Attributes, coords: NDArray[Any]) -> ForeignTiles:
        """Return the tiles of a coordinate file from its attributes and its dataset ``coords``."""
        raise NotImplementedError

    def write_tiles(self, folder: Path, index: TileIndex, name: str) -> Path | None:
        """Write the tiles of one slide; returns None where the tool has no file for a slide without tiles."""
        raise NotImplementedError

    def write_features(
        self, folder: Path, index: TileIndex, values: NDArray[np.floating], *, name: str, encoder: str
    ) -> Path | None:
        """Write tiles and features, shape (n, F), of one slide."""
        raise NotImplementedError


def write_foreign(folder: Path, index: TileIndex, *, kind: str, name: str) -> Path | None:
    """Write the tiles of one slide for another tool; returns the file, None where the tool has none without tiles."""
    return _writer(kind).write_tiles(folder, index, name)


def write_foreign_features(
    folder: Path, index: TileIndex, values: NDArray[np.floating], *, kind: str, name: str, encoder: str
) -> Path | None:
    """Write features and coordinates of one slide, except CLAM's ``.pt``; returns the file, None without tiles."""
    if not len(index):
        write_foreign(folder, index, kind=kind, name=name)
        return None
    return _writer(kind).write_features(folder, index, values, name=name, encoder=encoder)


def _writer(kind: str) -> ToolFormat:
    entry = TILE_FORMATS[kind]
    if not entry.writes:
        able = ", ".join(known.name for known in TILE_FORMATS.values() if known.writes)
        raise TileIndexError(f"tiles cannot be written as {kind}; choose one of {able}")
    made: ToolFormat = entry.load()()
    return made


def write_coordinates(path: Path, index: TileIndex, attributes: dict[str, Any]) -> Path:
    """Write a coordinate file: ``coords`` int64 (N, 2), with a tool's attributes and ours, which begin ``wsi_ips_``."""
    ours = {
        IDENTITY: index.slide_identity,
        "wsi_ips_fingerprint": index.fingerprint,
        "wsi_ips_mpp": np.array(index.mpp, np.float64),
        "wsi_ips_mpp_source": index.mpp_source,
        "wsi_ips_patch_mpp": np.array(index.plan.effective_mpp, np.float64),
        "wsi_ips_footprint_px0": np.array(index.plan.footprint_px0, np.float64),
    }
    coords = np.stack([index.x, index.y], axis=1).astype(np.int64)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        dataset = file.create_dataset("coords", data=coords, chunks=(1, 2), maxshape=(None, 2))
        for name, value in {**attributes, **ours}.items():
            dataset.attrs[name] = value
    return path


def write_feature_table(
    path: Path,
    values: NDArray[np.floating],
    coords: NDArray[np.integer],
    *,
    feature_attributes: dict[str, Any],
    coord_attributes: dict[str, Any],
) -> Path:
    """Write ``features`` f4 (n, F) and ``coords`` (n, 2), with the attributes of each."""
    width = values.shape[1]
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        features = file.create_dataset(
            "features", data=values.astype(np.float32), chunks=(1, width), maxshape=(None, width)
        )
        corners = file.create_dataset("coords", data=coords, chunks=(1, 2), maxshape=(None, 2))
        features.attrs.update(feature_attributes)
        corners.attrs.update(coord_attributes)
    return path


def square_side(index: TileIndex) -> int:
    """Return the side of the tiles on the level they are read from; refuse tiles that are not square."""
    plan = index.plan
    if plan.read_size.width != plan.read_size.height or plan.patch_size.width != plan.patch_size.height:
        raise refusal(
            index,
            f"its tiles cover {plan.read_size.width} x {plan.read_size.height} px of level {plan.level}, because its "
            f"scale differs between the axes ({index.mpp.x:.4g} and {index.mpp.y:.4g} µm/px), and the format knows "
            "squares only",
        )
    return plan.read_size.width


def refusal(index: TileIndex, why: str) -> TileIndexError:
    """Return the error for tiles that a format cannot express."""
    return TileIndexError(f"slide {index.slide_id}: {why}")
