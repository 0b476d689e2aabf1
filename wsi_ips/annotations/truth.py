"""Truth per tile from annotated regions: pure geometry."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

MOST_POINTS = 128
"""Of a piece from which boxes are cut."""


def tumour_fraction(region: BaseGeometry, boxes_px0: NDArray[np.float64]) -> NDArray[np.float32]:
    """Exact share of each box that lies in a region.

    Parameters
    ----------
    region
        Annotated tumour, level-0 pixels.
    boxes_px0
        Boxes x, y, width, height in level-0 pixels, shape (N, 4).

    Returns
    -------
    numpy.ndarray
        float32, shape (N,), 0-1.
    """
    if region.is_empty or len(boxes_px0) == 0:
        return np.zeros(len(boxes_px0), np.float32)
    x, y, width, height = boxes_px0.T
    boxes = shapely.box(x, y, x + width, y + height)
    # A lesion outline has tens of thousands of points: each box is cut out of a small piece of it.
    pieces = [piece for part in shapely.get_parts(region).tolist() for piece in _pieces(part)]
    tree = shapely.STRtree(pieces)
    row, piece = tree.query(boxes)
    shapely.prepare(tree.geometries)
    areas = (width * height)[row]
    edge = ~shapely.contains_properly(tree.geometries[piece], boxes[row])
    areas[edge] = shapely.area(shapely.intersection(tree.geometries[piece[edge]], boxes[row[edge]]))
    covered = np.bincount(row, areas, minlength=len(boxes))
    return np.asarray(np.clip(covered / (width * height), 0, 1), np.float32)


def _pieces(part: BaseGeometry) -> Iterator[BaseGeometry]:
    """A geometry cut in halves until each piece has few points; areas add up."""
    waiting = [part]
    while waiting:
        piece = waiting.pop()
        if shapely.get_num_coordinates(piece) <= MOST_POINTS:
            yield piece
            continue
        left, top, right, bottom = piece.bounds
        if right - left >= bottom - top:
            middle = (left + right) / 2
            halves = [shapely.box(left, top, middle, bottom), shapely.box(middle, top, right, bottom)]
        else:
            middle = (top + bottom) / 2
            halves = [shapely.box(left, top, right, middle), shapely.box(left, middle, right, bottom)]
        waiting += [half for half in shapely.intersection(piece, halves).tolist() if half.area > 0]
