"""Find contradictions inside one tile index."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wsi_ips.tiles.index import TileIndex


def geometry_mismatches(index: TileIndex) -> Iterator[str]:
    """Yield what is wrong: tiles must lie on the grid, within the slide, in order, once each."""
    advice = "delete it and run `wsi-ips tile`"
    order = np.lexsort((index.x, index.y))
    if not np.array_equal(order, np.arange(len(index))):
        yield f"tiles are not ordered by y, then x; {advice}"
    if len(np.unique(np.stack([index.x, index.y]), axis=1).T) != len(index):
        yield f"a tile is stored twice; {advice}"
    boxes, bounds = index.boxes_px0, index.bounds
    ends = boxes[:, :2] + boxes[:, 2:]
    # The last pixel may be rounded up if the footprint is not a whole number of level-0 pixels.
    outside = (boxes[:, :2] < bounds[:2]).any(1) | (ends > np.add(bounds[:2], bounds[2:]) + 1).any(1)
    if outside.any():
        yield f"{outside.sum()} tiles lie outside the scanned part of the slide; {advice}"
    steps = (boxes[:, :2] - bounds[:2]) / index.stride_px0
    off = (np.abs(steps - np.round(steps)) * index.stride_px0 > 1).any(1)
    if off.any():
        yield f"{off.sum()} tiles lie beside the grid; {advice}"
    for name, values in (("tissue_fraction", index.tissue_fraction), ("tumour_fraction", index.tumour_fraction)):
        if values is not None and len(values) and not (values.min() >= 0 and values.max() <= 1 + 1e-6):
            yield f"{name} is not between 0 and 1; {advice}"
