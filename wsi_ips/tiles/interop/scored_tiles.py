"""Tile scores of other models: tables (CSV) and HDF5 files, read and checked against the slide.

Known forms: any CSV with a column for x and one for y (also WSInfer's ``minx, miny, width, height``); HDF5 with
``coords`` and one or several tables of as many rows (CLAM's blockmap ``attention_scores``, TRIDENT). Nothing in a file
is executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wsi_ips.errors import ScoresError, TileIndexError
from wsi_ips.geometry import ReadPlan, Scale, Size
from wsi_ips.slides import SlideInfo
from wsi_ips.tables import NUMBER, number_of, read_table
from wsi_ips.tiles.index import IndexOrigin, TileIndex, index_at
from wsi_ips.tiles.interop.coordinate_import import SUFFIXES, common_stride_px, read_foreign, states_tile_size
from wsi_ips.tiles.interop.tile_formats import whole_corners

CORNER_NAMES = (("x", "y"), ("minx", "miny"), ("coord_x", "coord_y"), ("x_px0", "y_px0"), ("left", "top"))
SIZE_NAMES = (("width", "height"), ("tile_px0", "tile_px0"), ("patch_size_level0", "patch_size_level0"))
SLIDE_NAMES = ("slide_id", "slide", "slide_name")
# Columns of numbers that are not scores
NO_SCORES = frozenset({"id", "index", "tile", "tile_id", "patch_id", "level", "row", "column", "col", "maxx", "maxy"})
UNNAMED = "unnamed:"  # pandas gives this name to an index that it wrote and read back
MOST_COLUMNS = 20  # with more columns they are features, not scores


@dataclass(frozen=True)
class ScoredTiles:
    """Tiles of one slide with the scores of another model."""

    path: Path
    corners_px0: NDArray[np.int64]  # (N, 2) top-left corners (x, y), level-0 pixels, in the order of the file
    footprint_px0: Scale | None  # width and height of a tile, level-0 pixels; None where the file does not state it
    size_px0: Size | None  # size of the slide's level 0, None where the file does not state it
    columns: Mapping[str, NDArray[np.float64]]  # scores by name, float64, each of shape (N,)
    rows: NDArray[np.int64]  # (N,) for messages: lines of a CSV (the header is 1), rows of HDF5 (from 0)

    def at(self, where: NDArray[np.bool_]) -> str:
        """Name the first of some tiles, for messages."""
        row = int(np.flatnonzero(where)[0])
        x, y = self.corners_px0[row].tolist()
        return f"row {self.rows[row]} (x = {x}, y = {y})"


@dataclass(frozen=True)
class PlacedScores:
    """Scores on the slide: row i of each column belongs to tile i of the index."""

    index: TileIndex  # the tiles; their `tissue_fraction` is not known (NaN)
    columns: dict[str, NDArray[np.float64]]  # scores by name, float64, each of shape (N,)
    notes: tuple[str, ...]  # notes on repeated and overhanging tiles, for the user


def read_scored(path: Path, *, columns: Sequence[str] = (), slide_names: Sequence[str] = ()) -> ScoredTiles:
    """Read a file of scored tiles; its form is recognised by the names in it."""
    if not path.is_file():
        raise ScoresError(f"{path}: no such file; give a CSV or HDF5 file of scored tiles")
    if path.suffix.lower() in SUFFIXES:
        return _read_hdf5(path, columns)
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return _read_table(path, columns, slide_names)
    raise ScoresError(f"{path}: scores are read from .csv, .tsv and {', '.join(SUFFIXES)} files")


def with_footprint(scored: ScoredTiles, *, tile_px0: float | None, patches: Path | None) -> ScoredTiles:
    """Add the size of a tile where the file does not state it."""
    if tile_px0 is not None:
        return replace(scored, footprint_px0=Scale(tile_px0, tile_px0))
    if patches is not None:
        foreign = read_foreign(patches)
        known = {(int(x), int(y)) for x, y in foreign.corners_px0.tolist()}
        strange = np.array([(int(x), int(y)) not in known for x, y in scored.corners_px0.tolist()], bool)
        if strange.any():
            raise ScoresError(
                f"{scored.path}: {strange.sum()} of {len(strange)} tiles are not in {patches.name}, e.g. "
                f"{scored.at(strange)}; the scores were computed from other tiles"
            )
        return replace(scored, footprint_px0=foreign.footprint_px0, size_px0=foreign.size_px0)
    if scored.footprint_px0 is None:
        raise ScoresError(
            f"{scored.path}: it does not say how large a tile is; give --tile-px0 (side in level-0 pixels) or "
            "--patches (the coordinate file of CLAM or TRIDENT that the scores were computed from)"
        )
    return scored


def place_scores(scored: ScoredTiles, info: SlideInfo, *, slide_id: str, fingerprint: str) -> PlacedScores:
    """Place scores on their slide; the notes mention tiles listed twice and tiles over the slide's edge."""
    foot = scored.footprint_px0
    if foot is None:
        raise ScoresError(f"{scored.path}: the size of a tile is not known")
    for name, values in scored.columns.items():
        odd = ~np.isfinite(values)
        if odd.any():
            raise ScoresError(
                f"{scored.path}: `{name}` is missing or not finite in {odd.sum()} of {len(odd)} tiles, first in "
                f"{scored.at(odd)}; leave such tiles out of the file: tiles without a score are shown as not analysed"
            )
    _check_place(scored, info)
    kept, notes = _once(scored)
    corners = np.ascontiguousarray(scored.corners_px0[kept]).astype(np.int32)
    size = Size(max(1, round(foot.x)), max(1, round(foot.y)))
    mpp = info.pyramid.mpp
    plan = ReadPlan(0, Scale(1.0, 1.0), size, size, (mpp.x + mpp.y) / 2, mpp)
    over = (corners + list(size) > list(info.size_px0)).any(1)
    if over.any():
        notes.append(f"{over.sum()} of {len(corners)} tiles hang over the slide's edge")
    stride_px = common_stride_px(corners, plan)
    index = index_at(corners, plan, info, IndexOrigin(slide_id, "", fingerprint), stride_px=stride_px)
    index = replace(index, tissue_method=f"{len(corners)} tiles of {scored.path.name}")
    return PlacedScores(index, {name: values[kept] for name, values in scored.columns.items()}, tuple(notes))


def _read_table(path: Path, wanted: Sequence[str], slide_names: Sequence[str]) -> ScoredTiles:
    table = read_table(path, "scores", ScoresError)
    by_name = {name.lower(): name for name in table.columns}
    if len(by_name) < len(table.columns):
        raise ScoresError(f"{path}: two columns differ only in case; it has {', '.join(table.columns)}")
    pair = next((pair for pair in CORNER_NAMES if set(pair) <= by_name.keys()), None)
    if pair is None:
        known = "; ".join(", ".join(pair) for pair in CORNER_NAMES)
        raise ScoresError(f"{path}: no columns for the corner of a tile; known are {known} (level-0 pixels)")
    frame = _rows_of_slide(path, table.frame(), by_name, slide_names)
    if frame.empty:
        raise ScoresError(f"{path}: no rows; there is nothing to draw")
    corners = np.stack([_numbers(path, frame[by_name[name]]) for name in pair], axis=1)
    sides = next((pair for pair in SIZE_NAMES if set(pair) <= by_name.keys()), None)
    names = _chosen(path, frame, wanted, {*pair, *(sides or ()), *SLIDE_NAMES})
    return ScoredTiles(
        path=path,
        corners_px0=whole_corners(path, corners, 2),
        footprint_px0=_one_size(path, frame, by_name, sides),
        size_px0=None,
        columns={name: _numbers(path, frame[name], missing=True) for name in names},
        rows=frame.index.to_numpy(np.int64),
    )


def _rows_of_slide(
    path: Path, table: pd.DataFrame, by_name: Mapping[str, str], slide_names: Sequence[str]
) -> pd.DataFrame:
    """Return the rows of the slide, if a column names the slide; row numbers stay those of the file."""
    column = next((by_name[name] for name in SLIDE_NAMES if name in by_name), None)
    if column is None:
        return table
    found = table[column]
    if (found == "").any():
        raise ScoresError(
            f"{path}: row {(found == '').idxmax()}, column `{column}`: empty; name the slide of each tile"
        )
    mine: pd.DataFrame = table[found.isin(list(slide_names))]
    if mine.empty:
        raise ScoresError(
            f"{path}: column `{column}` names {', '.join(sorted(found.unique())[:3])}, none of them this slide "
            f"({' or '.join(slide_names)})"
        )
    return mine


def _chosen(path: Path, table: pd.DataFrame, wanted: Sequence[str], positions: set[str]) -> list[str]:
    """Return the columns of scores: those asked for, else every other column that holds numbers."""
    others = [str(name) for name in table if str(name).lower() not in positions]
    missing = [name for name in wanted if name not in others]
    if missing:
        raise ScoresError(f"{path}: no column `{missing[0]}`; it has {', '.join(others) or 'no further columns'}")
    scores = [name for name in others if name.lower() not in NO_SCORES and not name.lower().startswith(UNNAMED)]
    return _some(path, list(wanted) or [name for name in scores if any(map(NUMBER.fullmatch, table[name]))], others)


def _some(path: Path, names: list[str], others: Sequence[str]) -> list[str]:
    if not names:
        raise ScoresError(f"{path}: no column of scores; it has {', '.join(others) or 'nothing but coordinates'}")
    if len(names) > MOST_COLUMNS:
        raise ScoresError(f"{path}: {len(names)} columns of numbers; name the scores with --column, e.g. {names[0]}")
    return names


def _numbers(path: Path, cells: pd.Series[str], *, missing: bool = False) -> NDArray[np.float64]:
    """Return the numbers of a column; where ``missing`` allows it, NaN for an empty cell."""
    found = np.empty(len(cells))
    for place, (row, text) in enumerate(cells.items()):
        try:
            found[place] = number_of(text)
            if not (missing or np.isfinite(found[place])):
                raise ValueError("empty, or not finite; a position is a number")
        except ValueError as error:
            raise ScoresError(f"{path}: row {row}, column `{cells.name}`: {error}") from error
    return found


def _one_size(
    path: Path, table: pd.DataFrame, by_name: Mapping[str, str], names: tuple[str, str] | None
) -> Scale | None:
    if names is None:
        return None
    sides = [np.unique(_numbers(path, table[by_name[name]])) for name in names]
    if any(len(side) > 1 or not side[0] > 0 for side in sides):
        raise TileIndexError(f"{path}: tiles of several sizes, or of none ({names[0]}, {names[1]}); one is expected")
    return Scale(float(sides[0][0]), float(sides[1][0]))


def _read_hdf5(path: Path, wanted: Sequence[str]) -> ScoredTiles:
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("coords"), h5py.Dataset):
                raise ScoresError(f"{path}: no dataset `coords` in it, so the scores cannot be placed")
            coords = np.asarray(file["coords"][()])
            if not len(coords):
                raise ScoresError(f"{path}: no tiles in it; there is nothing to draw")
            stated = {*file.attrs, *file["coords"].attrs}
            columns: dict[str, NDArray[np.float64]] = {}
            for name in (name for name in file if name not in ("coords", "features")):
                columns |= _columns(name, file[name], len(coords))
    except OSError as error:
        raise ScoresError(f"{path}: cannot be read as HDF5 ({error})") from error
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise ScoresError(f"{path}: no scores `{missing[0]}`; it has {', '.join(columns) or 'none'}")
    names = _some(path, list(wanted or columns), list(columns))
    foreign = read_foreign(path) if states_tile_size(stated) else None
    return ScoredTiles(
        path=path,
        corners_px0=whole_corners(path, coords[:, :2] if coords.ndim == 2 else coords, 2),
        footprint_px0=foreign.footprint_px0 if foreign else None,
        size_px0=foreign.size_px0 if foreign else None,
        columns={name: columns[name] for name in names},
        rows=np.arange(len(coords), dtype=np.int64),
    )


def _columns(name: str, item: Any, rows: int) -> dict[str, NDArray[np.float64]]:
    """Return the columns of a dataset with a few numbers for each tile: ``name``, or ``name_0``, ``name_1`` ..."""
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "iuf" or item.shape[:1] != (rows,):
        return {}
    width = item.size // rows
    if item.ndim > 2 or not 1 <= width <= MOST_COLUMNS:
        return {}
    values = np.asarray(item[()], np.float64).reshape(rows, width)
    return {f"{name}_{k}" if width > 1 else name: values[:, k] for k in range(width)}


def _check_place(scored: ScoredTiles, info: SlideInfo) -> None:
    if scored.size_px0 is not None and scored.size_px0 != info.size_px0:
        raise TileIndexError(
            f"{scored.path}: the file says level 0 has {scored.size_px0.width} x {scored.size_px0.height} px, slide "
            f"{info.name} has {info.size_px0.width} x {info.size_px0.height}; the scores belong to another slide"
        )
    outside = np.any((scored.corners_px0 < 0) | (scored.corners_px0 >= np.array(info.size_px0)), axis=1)
    if outside.any():
        raise TileIndexError(
            f"{scored.path}: {outside.sum()} of {len(outside)} tiles begin outside slide {info.name} of "
            f"{info.size_px0.width} x {info.size_px0.height} px, first in {scored.at(outside)}; coordinates are "
            "level-0 pixels of the slide: is it another slide, or are they pixels of a coarser level?"
        )


def _once(scored: ScoredTiles) -> tuple[NDArray[np.intp], list[str]]:
    """Return the rows to use, ordered by y, then x; each tile once."""
    _, first, back = np.unique(scored.corners_px0[:, ::-1], axis=0, return_index=True, return_inverse=True)
    repeated = len(back) - len(first)
    if not repeated:
        return first, []
    for name, values in scored.columns.items():
        differs = values != values[first][back.ravel()]
        if differs.any():
            raise ScoresError(
                f"{scored.path}: {scored.at(differs)}: the tile is listed twice with different `{name}`; "
                "keep one of them"
            )
    return first, [f"{repeated} tiles are listed twice, with the same scores"]
