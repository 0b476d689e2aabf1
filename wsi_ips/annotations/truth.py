"""Truth per tile from annotated regions: pure geometry."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry


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
    fraction = np.zeros(len(boxes_px0), np.float32)
    if region.is_empty or len(boxes_px0) == 0:
        return fraction
    x, y, width, height = boxes_px0.T
    boxes = shapely.box(x, y, x + width, y + height)
    shapely.prepare(region)
    touched = np.flatnonzero(shapely.intersects(region, boxes))
    inside = shapely.contains_properly(region, boxes[touched])
    fraction[touched[inside]] = 1
    edge = touched[~inside]
    # Cutting each box out of the nearby part only: a lesion outline has tens of thousands of points.
    tree = shapely.STRtree(shapely.get_parts(region))
    box_row, part = tree.query(boxes[edge])
    areas = shapely.area(shapely.intersection(tree.geometries[part], boxes[edge][box_row]))
    np.add.at(fraction, edge[box_row], areas / (width * height)[edge[box_row]])
    return np.clip(fraction, 0, 1)
