"""The raster behind every heatmap: tile scores on the tile grid, one value per stride cell. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ScoresError, TileIndexError
from wsi_ips.geometry import Box, Point, Scale

SLACK = 1e-6
"""Tolerance for rounded strides, in cells."""
OFF_GRID_PX0 = 1.0
"""Largest distance of a tile from its grid position: corners are rounded to whole level-0 pixels."""
FINE_CELLS = 8
"""Tiles that span this many cells or more need not lie on the grid: another tool placed them freely."""


@dataclass(frozen=True)
class Raster:
    """Scores on the tile grid."""

    values: NDArray[np.float32]  # float32, shape (rows, columns); NaN where there is no tile
    starts: NDArray[np.bool_]  # True where a tile has its top-left corner, bool, shape (rows, columns)
    origin_px0: Point  # Top-left corner of cell (0, 0), level-0 pixels
    cell_px0: Scale  # Width and height of a cell in level-0 pixels (the stride, real numbers)
    # Width and height of a tile in level-0 pixels: larger than a cell where tiles overlap, smaller where there are gaps
    # between them
    tile_px0: Scale

    def sample(self, x_px0: NDArray[np.float64], y_px0: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the values at the crossings of given columns and rows of the slide, without interpolation.

        Parameters
        ----------
        x_px0, y_px0
            Level-0 positions, shapes (width,) and (height,).

        Returns
        -------
        numpy.ndarray
            float32, shape (height, width); NaN at positions that no tile covers, even inside a cell.
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
    """Place scores on the tile grid; where tiles overlap, average them weighted by the area they cover.

    Parameters
    ----------
    x, y
        Top-left corners of the tiles in level-0 pixels, shape (N,); N may be 0.
    score
        One value per tile, shape (N,).
    bounds
        Box that the grid covers; its top-left corner is the grid's origin.
    stride_px0, footprint_px0
        Step between tiles and size of a tile, level-0 pixels.

    Raises
    ------
    ScoresError
        A score is not finite, or the number of scores differs from the number of tiles.
    TileIndexError
        A tile does not lie on the grid that bounds and stride describe, so the map would be misplaced.
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
