"""Tile scores on the tile grid, one value per stride cell: behind every heatmap and hand-off file. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import region_mask
from wsi_ips.errors import ScoresError, TileIndexError
from wsi_ips.geometry import Box, Point, Scale, Size
from wsi_ips.tiles.index import TileIndex

SLACK = 1e-6  # tolerance for rounded strides, in cells
OFF_GRID_PX0 = 1.0  # largest distance of a tile from its grid position: corners are rounded to whole pixels
FINE_CELLS = 8  # tiles that span this many cells or more need not lie on the grid: another tool placed them freely
CELLS_ACROSS = 8  # cells along a tile on which tissue without tiles is found
OVERSHOOT = 1e-4  # scores may exceed 0-1 by rounding, never by more


@dataclass(frozen=True)
class Raster:
    """Scores on the tile grid."""

    values: NDArray[np.float32]  # (rows, columns); NaN where there is no tile
    starts: NDArray[np.bool_]  # (rows, columns), True where a tile has its top-left corner
    origin_px0: Point  # top-left corner of cell (0, 0), level-0 pixels
    cell_px0: Scale  # size of a cell (the stride), level-0 pixels
    tile_px0: Scale  # size of a tile, level-0 pixels: larger than a cell where tiles overlap, smaller with gaps

    def sample(self, x_px0: NDArray[np.float64], y_px0: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the values where columns (width,) and rows (height,) of the slide cross, without interpolation.

        The result has the shape (height, width); NaN at positions that no tile covers, even inside a cell.
        """
        column, across = _cells((x_px0 - self.origin_px0.x) / self.cell_px0.x)
        row, down = _cells((y_px0 - self.origin_px0.y) / self.cell_px0.y)
        cells_x, cells_y = self.tile_px0.over(self.cell_px0)
        covered = np.zeros((len(row), len(column)), bool)
        for dy in range(_reach(cells_y)):
            for dx in range(_reach(cells_x)):
                near = (down + dy < cells_y + SLACK)[:, None] & (across + dx < cells_x + SLACK)[None]
                covered |= near & _at(self.starts, row - dy, column - dx, False)
        return np.where(covered, _at(self.values, row, column, np.nan), np.float32(np.nan))

    def require_0_to_1(self, kind: str) -> None:
        """Raise ScoresError where a score is outside 0-1: colour scales and stored ranges are fixed."""
        known = self.values[np.isfinite(self.values)]
        if (np.abs(known - 0.5) > 0.5 + OVERSHOOT).any():
            raise ScoresError(f"{kind} map: scores reach {known.min():.4g} to {known.max():.4g}, not 0-1")


def tile_raster(
    x: NDArray[np.integer],
    y: NDArray[np.integer],
    score: NDArray[np.floating],
    *,
    bounds: Box,
    stride_px0: Scale,
    footprint_px0: Scale,
) -> Raster:
    """Place scores on the tile grid; where tiles overlap, average them weighted by the area they cover.

    ``x``, ``y`` are the top-left corners of the tiles, level-0 pixels, shape (N,), N >= 0. The grid begins at the
    top-left corner of ``bounds``; raises TileIndexError where a tile does not lie on it, ScoresError for unfit scores.
    """
    scores = np.asarray(score, np.float64)
    if scores.shape != np.shape(x) or not np.isfinite(scores).all():
        raise ScoresError(f"{np.size(x)} tiles need as many finite scores; predict the slide again")
    cells = footprint_px0.over(stride_px0)
    column = _grid_steps(np.asarray(x), bounds.x, stride_px0.x, cells.x, "x")
    row = _grid_steps(np.asarray(y), bounds.y, stride_px0.y, cells.y, "y")
    shape = (int(row.max(initial=0)) + _reach(cells.y), int(column.max(initial=0)) + _reach(cells.x))
    total, weight, starts = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    starts[row, column] = True
    for dy in range(_reach(cells.y)):
        for dx in range(_reach(cells.x)):
            covered = min(1.0, cells.x - dx) * min(1.0, cells.y - dy)
            np.add.at(total, (row + dy, column + dx), covered * scores)
            np.add.at(weight, (row + dy, column + dx), covered)
    values = np.full(shape, np.nan, np.float32)
    np.divide(total, weight, out=values, where=weight > 0, casting="unsafe")
    return Raster(values, starts, Point(bounds.x, bounds.y), stride_px0, footprint_px0)


def index_raster(index: TileIndex, score: NDArray[np.floating]) -> Raster:
    """Place a score per tile of an index on its grid, see :func:`tile_raster`."""
    foot = index.plan.footprint_px0
    return tile_raster(index.x, index.y, score, bounds=index.grid, stride_px0=index.stride_px0, footprint_px0=foot)


def unseen_cells(index: TileIndex, tissue: BaseGeometry, most: int) -> tuple[NDArray[np.bool_], Scale]:
    """Return where tissue (level-0 pixels) has no tile, bool (rows, columns) from the corner of level 0, and its cell.

    A tile is several cells wide, except where that would give more than ``most`` cells.
    """
    size = index.size_px0
    cell = max(min(index.plan.footprint_px0) / CELLS_ACROSS, math.sqrt(size.width * size.height / most), 1.0)
    where = region_mask(tissue, size, downsample=cell)
    y, x = ((np.arange(count, dtype=np.float64) + 0.5) * cell for count in where.shape)
    tiled = np.isfinite(index_raster(index, np.zeros(len(index))).sample(x, y))
    return where & ~tiled, Scale(cell, cell)


def summed(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sums of blocks of 2 x 2, filled up with zeros at the right and lower edge."""
    *rest, rows, columns = values.shape
    even = np.pad(values, [*[(0, 0)] * len(rest), (0, rows % 2), (0, columns % 2)])
    blocks = even.reshape(*rest, (rows + 1) // 2, 2, (columns + 1) // 2, 2)
    return np.asarray(blocks.sum(axis=(-3, -1)), np.float32)


@dataclass(frozen=True)
class ScoreMaps:
    """Scores of the tiles of one slide, from our model or another, for hand-off files."""

    slide_id: str  # file names begin with it
    class_name: str  # meaning of a high score of the first map, for example ``tumor``
    probability: float | None  # of that class for the whole slide; None where it is not known
    model_id: str
    fingerprint: str  # of everything the files are made from; object ids are derived from it
    # score per tile, shape (N,), 0-1, by name of the map; lesions are outlined on the first map
    scores: Mapping[str, NDArray[np.float32]]
    threshold: float  # tiles with at least this score on the first map are positive
    x: NDArray[np.integer]  # top-left corners of the tiles, level-0 pixels of the full slide, shape (N,)
    y: NDArray[np.integer]
    size_px0: Size  # size of level 0
    bounds: Box  # scanned part of the slide, level-0 pixels; its corner is the origin of coordinates in QuPath
    grid: Box  # its top-left corner is the origin of the tile grid
    stride_px0: Scale  # step between tiles, level-0 pixels
    footprint_px0: Scale  # size of a tile, level-0 pixels
    mpp: Scale  # µm per level-0 pixel

    def only(self, tiles: NDArray[np.integer]) -> Self:
        """Return the same for some tiles, given their rows."""
        scores = {name: values[tiles] for name, values in self.scores.items()}
        return replace(self, x=self.x[tiles], y=self.y[tiles], scores=scores)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def score(self) -> NDArray[np.float32]:
        """Scores of the first map, shape (N,)."""
        return next(iter(self.scores.values()))

    @cached_property
    def rasters(self) -> dict[str, Raster]:
        """Each map on the tile grid; all of one shape."""
        grid, stride, foot = self.grid, self.stride_px0, self.footprint_px0
        return {
            name: tile_raster(self.x, self.y, values, bounds=grid, stride_px0=stride, footprint_px0=foot)
            for name, values in self.scores.items()
        }

    @property
    def raster(self) -> Raster:
        """The first map."""
        return next(iter(self.rasters.values()))

    @property
    def bounds_origin(self) -> Point:
        """Origin of coordinates in QuPath, level-0 pixels."""
        return Point(self.bounds.x, self.bounds.y)

    @property
    def quarter_tile_px0(self) -> float:
        """A quarter of a tile's shorter side, level-0 pixels: the tolerance of simplified outlines."""
        return min(self.footprint_px0) / 4

    def best_first(self) -> NDArray[np.int64]:
        """Return the tiles by falling score of the first map; equal scores stay in tile order."""
        return np.argsort(-self.score, kind="stable")


def tile_geometry(index: TileIndex) -> dict[str, Any]:
    """Return the fields of :class:`ScoreMaps` that a tile index determines."""
    return {
        "x": index.x,
        "y": index.y,
        "size_px0": index.size_px0,
        "bounds": index.bounds,
        "grid": index.grid,
        "stride_px0": index.stride_px0,
        "footprint_px0": index.plan.footprint_px0,
        "mpp": index.mpp,
    }


def _grid_steps(corner: NDArray[np.integer], origin: int, stride: float, cells: float, axis: str) -> NDArray[np.intp]:
    """Return the column or row of each tile; a tile of :data:`FINE_CELLS` cells or more goes to the nearest cell."""
    steps = np.rint((corner - origin) / stride).astype(np.intp)
    off = np.abs(corner - origin - steps * stride)
    if (steps < 0).any() or (off > (OFF_GRID_PX0 if cells < FINE_CELLS - SLACK else stride)).any():
        raise TileIndexError(
            f"tiles lie up to {off.max():.1f} level-0 px off the grid that begins at {axis} = {origin} with a step "
            f"of {stride:.6g}; tile the slide again"
        )
    return steps


def _cells(position: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the cell of each position, and the place inside the cell (0-1)."""
    cell = np.floor(position)
    return cell.astype(np.intp), position - cell


def _reach(cells: float) -> int:
    """Return how many cells a tile of this width, in cells, touches along one axis."""
    return max(1, int(np.ceil(cells - SLACK)))


def _at(grid: NDArray[Any], row: NDArray[np.intp], column: NDArray[np.intp], outside: float) -> NDArray[Any]:
    """Return the values of a grid at rows x columns, ``outside`` beyond its edge."""
    rows, columns = grid.shape
    out = grid[np.clip(row, 0, rows - 1)[:, None], np.clip(column, 0, columns - 1)[None]]  # a copy
    out[(row < 0) | (row >= rows), :] = outside
    out[:, (column < 0) | (column >= columns)] = outside
    return out
