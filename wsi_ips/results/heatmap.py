"""The raster behind every heatmap: one pixel per stride cell, nothing else. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wsi_ips.geometry import Box, Point, Scale


@dataclass(frozen=True)
class Raster:
    """Scores on the tile grid.

    Attributes
    ----------
    values
        float32, shape (rows, columns); NaN where there is no tile.
    origin_px0
        Top-left corner of cell (0, 0), level-0 pixels.
    cell_px0
        Width and height of a cell in level-0 pixels (the stride, real numbers).
    """

    values: NDArray[np.float32]
    origin_px0: Point
    cell_px0: Scale

    def sample(self, x_px0: NDArray[np.float64], y_px0: NDArray[np.float64]) -> NDArray[np.float32]:
        """Values on the grid of some columns and rows of the slide; no interpolation.

        Parameters
        ----------
        x_px0, y_px0
            Level-0 positions, shapes (width,) and (height,).

        Returns
        -------
        numpy.ndarray
            float32, shape (height, width); NaN outside the raster and where there is no tile.
        """
        column = np.floor((x_px0 - self.origin_px0.x) / self.cell_px0.x).astype(np.intp)
        row = np.floor((y_px0 - self.origin_px0.y) / self.cell_px0.y).astype(np.intp)
        rows, columns = self.values.shape
        out = self.values[np.clip(row, 0, rows - 1)[:, None], np.clip(column, 0, columns - 1)[None]]
        inside = ((row >= 0) & (row < rows))[:, None] & ((column >= 0) & (column < columns))[None]
        return np.where(inside, out, np.float32(np.nan))


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
        Top-left corners of the tiles in level-0 pixels, shape (N,).
    score
        One number per tile, shape (N,).
    bounds
        Box the grid was laid over; its corner is the grid's origin.
    stride_px0, footprint_px0
        Step between tiles and size of a tile, level-0 pixels.
    """
    reach = [max(1, int(np.ceil(f / s - 1e-6))) for f, s in zip(footprint_px0, stride_px0, strict=True)]
    column = np.rint((np.asarray(x) - bounds.x) / stride_px0.x).astype(np.intp)
    row = np.rint((np.asarray(y) - bounds.y) / stride_px0.y).astype(np.intp)
    shape = (int(row.max(initial=0)) + reach[1], int(column.max(initial=0)) + reach[0])
    total, weight = np.zeros(shape), np.zeros(shape)
    for dy in range(reach[1]):
        for dx in range(reach[0]):
            covered = _overlap(dx, footprint_px0.x / stride_px0.x) * _overlap(dy, footprint_px0.y / stride_px0.y)
            np.add.at(total, (row + dy, column + dx), covered * np.asarray(score, np.float64))
            np.add.at(weight, (row + dy, column + dx), covered)
    values = np.full(shape, np.nan, np.float32)
    np.divide(total, weight, out=values, where=weight > 0, casting="unsafe")
    return Raster(values, Point(bounds.x, bounds.y), stride_px0)


def attention_rank(attention: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rank of each tile within its slide, 0 (least) to 1 (most); equal attention has equal rank."""
    if len(attention) == 1:
        return np.ones(1, np.float32)
    return ((stats.rankdata(attention) - 1) / (len(attention) - 1)).astype(np.float32)


def _overlap(step: int, cells: float) -> float:
    """Share of the cell ``step`` cells on that a tile of ``cells`` cells covers along one axis."""
    return min(1.0, cells - step) if cells > 1 else 1.0
