"""How much of a box or pixel lies in an annotated region: pure geometry."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry
from skimage.draw import polygon2mask

from wsi_ips.annotations.annotation_files import polygons_of
from wsi_ips.geometry import Size

MOST_POINTS = 128  # of a piece from which boxes are cut


def tumour_fraction(region: BaseGeometry, boxes_px0: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the exact share of each box (x, y, width, height; shape (N, 4)) in a region: float32, shape (N,), 0-1."""
    if region.is_empty or len(boxes_px0) == 0:
        return np.zeros(len(boxes_px0), np.float32)
    x, y, width, height = boxes_px0.T
    boxes = shapely.box(x, y, x + width, y + height)
    # A lesion outline has tens of thousands of points, so each box is cut out of a small piece of it.
    pieces = [piece for part in shapely.get_parts(region).tolist() for piece in _pieces(part)]
    tree = shapely.STRtree(pieces)
    row, piece = tree.query(boxes)
    shapely.prepare(tree.geometries)
    areas = (width * height)[row]
    edge = ~shapely.contains_properly(tree.geometries[piece], boxes[row])
    areas[edge] = shapely.area(shapely.intersection(tree.geometries[piece[edge]], boxes[row[edge]]))
    covered = np.bincount(row, areas, minlength=len(boxes))
    return np.asarray(np.clip(covered / (width * height), 0, 1), np.float32)


def region_mask(region: BaseGeometry, size_px0: Size, *, downsample: float) -> NDArray[np.bool_]:
    """Tell for each pixel of level 0 over ``downsample`` (rounded up; bool) whether its centre lies in a region."""
    rows, columns = math.ceil(size_px0.height / downsample), math.ceil(size_px0.width / downsample)
    mask = np.zeros((rows, columns), bool)
    for part in polygons_of(region):  # polygons do not overlap: a hole in one is outside of all, or holds an island
        left, top, right, bottom = np.array(part.bounds) / downsample
        x, y = max(0, int(left)), max(0, int(top))
        box = (slice(y, min(rows, int(bottom) + 1)), slice(x, min(columns, int(right) + 1)))
        if 0 in mask[box].shape or part.area == 0:
            continue
        corner, window = np.array([x, y]) + 0.5, mask[box]  # pixel centres become whole numbers
        inside, *holes = (shapely.get_coordinates(r) / downsample - corner for r in (part.exterior, *part.interiors))
        shown = polygon2mask(window.shape, inside[:, ::-1])
        for hole in holes:
            shown &= ~polygon2mask(window.shape, hole[:, ::-1])
        window |= shown
    return mask


def _pieces(part: BaseGeometry) -> Iterator[BaseGeometry]:
    """Cut a geometry in halves until each piece has few points; their areas add up."""
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
