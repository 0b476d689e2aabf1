"""Features as CLAM and TRIDENT store them, read and checked against tiles and slide.

CLAM: ``h5_files/NAME.h5`` with ``features`` f4 (N, F) and ``coords`` i4 (N, 2), no attributes, and
``pt_files/NAME.pt``, a bare tensor in the order of the coordinate file (read and written elsewhere, with torch).
TRIDENT: ``{mag}x_{patch}px_{overlap}px_overlap/features_{encoder}/NAME.h5`` with ``features`` f2 or f4 and ``coords``
with its usual attributes.

Shapes: N tiles of the file, n of the index, F width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import FeaturesError
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.interop.coordinate_import import (
    STAMP_ADVICE,
    SUFFIXES,
    by_owner,
    holds,
    read_foreign,
    require_on_slide,
    zarr_advice,
)
from wsi_ips.tiles.interop.tile_formats import ForeignTiles, whole_corners

TENSOR = ".pt"
UNNAMED = "unnamed"
HALF_PX0 = 0.5


@dataclass(frozen=True)
class ForeignFeatures:
    """Features of one slide as another tool stored them."""

    path: Path
    values: NDArray[np.floating]  # float16 or float32, shape (N, F)
    corners_px0: NDArray[np.int64]  # top-left corners (x, y) in level-0 pixels, int64, shape (N, 2)
    encoder: str = UNNAMED  # name of the encoder that the file states, `unnamed` where it does not
    geometry: ForeignTiles | None = None  # its tiles; None where the file has coordinates only, as CLAM's


def read_foreign_features(path: Path) -> ForeignFeatures:
    """Read the features in a file of CLAM (``h5_files``) or TRIDENT."""
    try:
        with h5py.File(path, "r") as file:
            missing = [name for name in ("features", "coords") if not isinstance(file.get(name), h5py.Dataset)]
            if missing:
                raise FeaturesError(f"{path}: no dataset `{missing[0]}` in it; give feature files of CLAM or TRIDENT")
            values, coords = np.asarray(file["features"][()]), np.asarray(file["coords"][()])
            encoder = file["features"].attrs.get("encoder", UNNAMED)
            placed = bool(file["coords"].attrs.keys())
    except OSError as error:
        raise FeaturesError(f"{path}: cannot be read as HDF5 ({error})") from error
    geometry = read_foreign(path) if placed else None
    corners = geometry.corners_px0 if geometry else whole_corners(path, coords, 2)
    encoder = encoder.decode("utf-8", "replace") if isinstance(encoder, bytes) else str(encoder)
    return foreign_features(path, values, corners, encoder=encoder, geometry=geometry)


def foreign_features(
    path: Path,
    values: NDArray[Any],
    corners_px0: NDArray[np.int64],
    *,
    encoder: str = UNNAMED,
    geometry: ForeignTiles | None = None,
) -> ForeignFeatures:
    """Join features with their coordinates and check one against the other."""
    if values.ndim != 2 or values.dtype.kind != "f":
        raise FeaturesError(f"{path}: features of shape {values.shape} and type {values.dtype}; (N, F) floats expected")
    if len(values) != len(corners_px0):
        raise FeaturesError(
            f"{path}: {len(values)} rows of features for {len(corners_px0)} coordinates; they are from different runs"
        )
    return ForeignFeatures(path, values, corners_px0, encoder, geometry)


def rows_of_tiles(foreign: ForeignFeatures, index: TileIndex) -> NDArray[np.int64]:
    """Return the row of the file for each tile of the index, shape (n,); the file may hold further tiles."""
    where = f"{foreign.path}: features for slide {index.slide_id}"
    geometry, footprint = foreign.geometry, index.plan.footprint_px0
    corners, stated = foreign.corners_px0, geometry.size_px0 if geometry else None
    require_on_slide(where, corners, index.size_px0, stated=stated, error=FeaturesError)
    if geometry is not None and geometry.identity not in (None, index.slide_identity):
        raise FeaturesError(f"{where}: made from a slide file of other content; compute them again")
    if geometry is not None and any(
        abs(a - b) > HALF_PX0 + 1e-3 * b for a, b in zip(geometry.footprint_px0, footprint, strict=True)
    ):
        raise FeaturesError(
            f"{where}: of tiles of {geometry.footprint_px0.x:g} level-0 px, the run's are {footprint.x:g}; import the "
            "coordinates they were made from (`tiles.imported`)"
        )
    rows: dict[tuple[int, int], int] = {}
    for row, (x, y) in enumerate(corners.tolist()):
        rows.setdefault((x, y), row)  # a tile that is listed twice: its first row
    wanted = list(zip(index.x.tolist(), index.y.tolist(), strict=True))
    missing = [corner for corner in wanted if corner not in rows]
    if missing:
        raise FeaturesError(
            f"{where}: none for {len(missing)} of {len(wanted)} tiles, e.g. the one at {missing[0]}; import the "
            "coordinates they were made from (`tiles.imported`)"
        )
    return np.array([rows[corner] for corner in wanted], np.int64)


def find_features(folder: Path, names: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Find the feature file of each slide in a folder and its subfolders; prefer CLAM's form with coordinates."""
    if not folder.is_dir():
        raise FeaturesError(f"{folder}: no such folder")
    files = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (*SUFFIXES, TENSOR)]
    stamp = next((p for p in files if p.suffix != TENSOR and holds(p, "feats")), None)
    files = [p for p in files if p.suffix == TENSOR or holds(p, "features")]
    if not files:
        raise FeaturesError(
            f"{folder}: no feature file in it (.h5 with a dataset `features`, or .pt)"
            + (f"; {stamp.name}: {STAMP_ADVICE}" if stamp else zarr_advice(folder))
        )
    found, _ = by_owner(files, names)
    chosen: dict[str, Path] = {}
    for slide_id, paths in found.items():
        tables = [path for path in paths if path.suffix != TENSOR] or paths
        if len(tables) > 1:
            listed = ", ".join(str(path.relative_to(folder)) for path in tables)
            raise FeaturesError(
                f"{folder}: {len(tables)} feature files of slide {slide_id}: {listed}; give the folder of one encoder"
            )
        chosen[slide_id] = tables[0]
    return chosen
