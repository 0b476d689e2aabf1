"""The raster behind every heatmap: one pixel per stride cell, nothing else. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wsi_ips.errors import ScoresError, TileIndexError
from wsi_ips.geometry import Box, Point, Scale

SLACK = 1e-6
"""Rounding of real strides, in cells."""
OFF_GRID_PX0 = 1.0
"""A tile may stand this far from its place on the grid: corners are rounded to whole level-0 pixels."""
FINE_CELLS = 8
"""Cells per tile from which on the grid is only a raster: tiles that another tool laid piece by piece."""


@dataclass(frozen=True)
class Raster:
    """Scores on the tile grid.

    Attributes
    ----------
    values
        float32, shape (rows, columns); NaN where there is no tile.
    starts
        Whether a tile has its top-left corner in a cell, bool, shape (rows, columns).
    origin_px0
        Top-left corner of cell (0, 0), level-0 pixels.
    cell_px0
        Width and height of a cell in level-0 pixels (the stride, real numbers).
    tile_px0
        Width and height of a tile in level-0 pixels: more than a cell where tiles overlap, less where the
        grid leaves gaps.
    """

    values: NDArray[np.float32]
    starts: NDArray[np.bool_]
    origin_px0: Point
    cell_px0: Scale
    tile_px0: Scale

    def sample(self, x_px0: NDArray[np.float64], y_px0: NDArray[np.float64]) -> NDArray[np.float32]:
        """Values on the grid of some columns and rows of the slide; no interpolation.

        Parameters
        ----------
        x_px0, y_px0
            Level-0 positions, shapes (width,) and (height,).

        Returns
        -------
        numpy.ndarray
            float32, shape (height, width); NaN at every position that no tile covers, also inside a cell.
        """
        column, across = _cells((x_px0 - self.origin_px0.x) / self.cell_px0.x)
        row, down = _cells((y_px0 - self.origin_px0.y) / self.cell_px0.y)
        cells_x, cells_y = self.tile_px0.x / self.cell_px0.x, self.tile_px0.y / self.cell_px0.y
        covered = np.zeros((len(row), len(column)), bool)
        for dy in range(_reach(cells_y)):
            for dx in range(_reach(cells_x)):
                near = (down + dy < cells_y + SLACK)[:, None] & (across + dx < cells_x + SLACK)[None]
                covered |= near & _at(self.starts, row - dy, column - dx, False)
        return np.where(covered, _at(self.values, row, column, np.nan), np.float32(np.nan))


def tile_raster(
    x: NDArray[np.integer],
    y: NDArray[np.integer],
    score: NDArray[np.floating],
    *,
    bounds: Box,
    stride_px0: Scale,
    footprint_px0: Scale,
) -> Raster:
    """Lay scores on the tile grid; where tiles overlap they are averaged by the area they cover.

    Parameters
    ----------
    x, y
        Top-left corners of the tiles in level-0 pixels, shape (N,); N may be 0.
    score
        One number per tile, shape (N,).
    bounds
        Box the grid was laid over; its corner is the grid's origin.
    stride_px0, footprint_px0
        Step between tiles and size of a tile, level-0 pixels.

    Raises
    ------
    ScoresError
        A score is not finite, or there are not as many scores as tiles.
    TileIndexError
        A tile stands off the grid that bounds and stride describe: the map would be misplaced.
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


def attention_rank(attention: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rank of each tile within its slide, 0 (least) to 1 (most); equal attention has equal rank.

    Raises
    ------
    ScoresError
        An attention is not finite.
    """
    if not np.isfinite(attention).all():
        raise ScoresError("attention is not finite; predict the slide again")
    if len(attention) == 1:
        return np.ones(1, np.float32)
    return np.asarray((stats.rankdata(attention) - 1) / (len(attention) - 1), np.float32)


def odds_share(margin: NDArray[np.floating]) -> NDArray[np.float32]:
    """Share of a slide's odds that rests on a tile, 0-1, from what the tile adds to its log-odds.

    Without the tile the odds are ``exp(-margin)`` of what they were: 0 where nothing changes or the tile speaks against
    the class, near 1 where the decision hangs on it.

    Raises
    ------
    ScoresError
        A margin is not finite.
    """
    if not np.isfinite(margin).all():
        raise ScoresError("evidence is not finite; predict the slide again")
    return np.asarray(-np.expm1(-np.maximum(margin, 0)), np.float32)


def _grid_steps(corner: NDArray[np.integer], origin: int, stride: float, cells: float, axis: str) -> NDArray[np.intp]:
    """Column or row of each tile; a tile of eight cells and more stands on no grid and goes to the nearest cell."""
    steps = np.rint((corner - origin) / stride).astype(np.intp)
    off = np.abs(corner - origin - steps * stride)
    if (steps < 0).any() or (off > (OFF_GRID_PX0 if cells < FINE_CELLS - SLACK else stride)).any():
        raise TileIndexError(
            f"tiles stand up to {off.max():.1f} level-0 px off the grid that begins at {axis} = {origin} with a step "
            f"of {stride:.6g}; tile the slide again"
        )
    return steps


def _cells(position: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Cell that each position falls into, and where inside it (0-1)."""
    cell = np.floor(position)
    return cell.astype(np.intp), position - cell


def _reach(cells: float) -> int:
    """Cells that a tile of this many cells touches along one axis."""
    return max(1, int(np.ceil(cells - SLACK)))


def _at(grid: NDArray[Any], row: NDArray[np.intp], column: NDArray[np.intp], outside: float) -> NDArray[Any]:
    """Values of a grid at rows times columns, ``outside`` beyond its edge."""
    rows, columns = grid.shape
    out = grid[np.clip(row, 0, rows - 1)[:, None], np.clip(column, 0, columns - 1)[None]]  # a copy
    out[(row < 0) | (row >= rows), :] = outside
    out[:, (column < 0) | (column >= columns)] = outside
    return out
