"""Lesions: connected areas of a score map from the threshold on, and their outlines. Pure geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry.base import BaseGeometry

from wsi_ips.geometry import Box
from wsi_ips.results.score_raster import Raster, ScoreMaps
from wsi_ips.tiles.recall import longest_diameter_um

Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]
TOUCHING = np.ones((3, 3), bool)  # cells that touch at a corner belong together
WHOLE = 1e-6  # tolerance for a tile that spans a whole number of cells, in cells
GRAIN_PX0 = 0.01  # grid to which coordinates of outlines are rounded, level-0 pixels


@dataclass(frozen=True)
class Lesion:
    """One lesion according to a model."""

    number: int  # from 1, largest first
    # area of its tiles, level-0 pixels of the full slide; several polygons where tiles touch at corners only
    region: BaseGeometry
    area_um2: float
    diameter_um: float  # largest distance between two points of the outline
    mean: float  # mean score of its cells
    highest: float  # highest score of its cells
    box_px0: Box  # smallest box around it, level-0 pixels

    @property
    def centroid_px0(self) -> tuple[float, float]:
        """Centre of its area; it may lie outside a curved lesion."""
        centre = self.region.centroid
        return float(centre.x), float(centre.y)


def find_lesions(maps: ScoreMaps) -> list[Lesion]:
    """Return the connected parts of the first map from the threshold on, largest first.

    Where a tile does not span a whole number of cells (uneven overlap, or gaps between tiles), only the area that tiles
    cover counts.
    """
    raster = maps.raster
    labels, count = ndimage.label(np.nan_to_num(raster.values, nan=-1.0) >= maps.threshold, structure=TOUCHING)
    if not count:
        return []
    numbers = np.arange(1, count + 1)
    means = ndimage.mean(raster.values, labels, numbers)
    highest = ndimage.maximum(raster.values, labels, numbers)
    regions = []
    for number, window in zip(numbers.tolist(), ndimage.find_objects(labels), strict=True):
        regions.append(_region(raster, labels[window] == number, window[0].start, window[1].start))
    order = sorted(range(count), key=lambda at: (-regions[at].area, regions[at].bounds[1], regions[at].bounds[0]))
    return [
        Lesion(
            number=place,
            region=regions[at],
            area_um2=float(regions[at].area * maps.mpp.x * maps.mpp.y),
            diameter_um=longest_diameter_um(regions[at], maps.mpp),
            mean=float(means[at]),
            highest=float(highest[at]),
            box_px0=_box_around(regions[at]),
        )
        for place, at in enumerate(order, 1)
    ]


def covered_region(raster: Raster) -> BaseGeometry:
    """Return the area that tiles cover, level-0 pixels."""
    return _region(raster, np.isfinite(raster.values), 0, 0)


def _box_around(region: BaseGeometry) -> Box:
    left, top, right, bottom = region.bounds
    x, y = int(np.floor(left)), int(np.floor(top))
    return Box(x, y, int(np.ceil(right)) - x, int(np.ceil(bottom)) - y)


def _region(raster: Raster, cells: Bools, first_row: int, first_column: int) -> BaseGeometry:
    """Return the area of some cells, as far as tiles cover them; ``cells`` is a window of the raster."""
    reach = np.array(raster.tile_px0) / np.array(raster.cell_px0)
    region = _union(raster, cells, first_row, first_column, raster.cell_px0)
    if (np.abs(reach - np.rint(reach)) > WHOLE).any():
        region = shapely.intersection(region, _tiles_over(raster, cells, first_row, first_column, reach))
    return shapely.set_precision(region, GRAIN_PX0)


def _union(
    raster: Raster, cells: Bools, first_row: int, first_column: int, size_px0: tuple[float, float]
) -> BaseGeometry:
    """Return the union of boxes of a size at the corners of some cells; a run of whole cells becomes one box."""
    whole = tuple(size_px0) == tuple(raster.cell_px0)
    rows, starts, ends = _runs(cells) if whole else (*np.nonzero(cells), np.zeros(0, np.intp))
    left = raster.origin_px0.x + (starts + first_column) * raster.cell_px0.x
    top = raster.origin_px0.y + (rows + first_row) * raster.cell_px0.y
    right, bottom = left + size_px0[0], top + size_px0[1]
    if whole:  # computed from the grid, so that neighbours share their edge
        right = raster.origin_px0.x + (ends + first_column) * raster.cell_px0.x
        bottom = raster.origin_px0.y + (rows + 1 + first_row) * raster.cell_px0.y
    return shapely.union_all(shapely.box(left, top, right, bottom))


def _tiles_over(
    raster: Raster, cells: Bools, first_row: int, first_column: int, reach: NDArray[np.float64]
) -> BaseGeometry:
    """Return the area of all tiles that cover one of the cells."""
    wide, high = (int(np.ceil(side - WHOLE)) - 1 for side in reach)  # cells left of and above a cell
    grown = np.zeros((cells.shape[0] + high, cells.shape[1] + wide), bool)
    for dy in range(high + 1):
        for dx in range(wide + 1):
            grown[dy : dy + cells.shape[0], dx : dx + cells.shape[1]] |= cells
    row, column = first_row - high, first_column - wide
    cut_y, cut_x = max(0, -row), max(0, -column)
    grown = grown[cut_y:, cut_x:]
    row, column = row + cut_y, column + cut_x
    starts = raster.starts[row : row + grown.shape[0], column : column + grown.shape[1]]
    return _union(raster, grown & starts, row, column, raster.tile_px0)


def _runs(cells: Bools) -> tuple[Ints, Ints, Ints]:
    """Return row, first column and end column of each run of True."""
    edges = np.diff(np.pad(cells, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    return rows, starts, ends
