"""What every file of a hand-off package is made from: the scores of one slide's tiles and their place. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wsi_ips.geometry import Box, Point, Scale, Size
from wsi_ips.results.heatmap import Raster, tile_raster


@dataclass(frozen=True)
class ScoreMaps:
    """Scores of the tiles of one slide, of our model or of another.

    Attributes
    ----------
    slide_id
        Identity of the slide; the files are called after it.
    class_name
        What a high score of the first map means, e.g. ``tumor``.
    probability
        Of that class, for the whole slide; None where the model says nothing of whole slides.
    model_id
        Which model.
    fingerprint
        Of everything the files are made from; ids of objects come from it.
    x, y
        Top-left corners of the tiles, level-0 pixels of the full slide, shape (N,).
    scores
        Name of a map and its score per tile, shape (N,), 0-1. Lesions are cut from the first.
    threshold
        Tiles from this score of the first map on are called positive.
    size_px0
        Size of level 0.
    bounds
        Scanned part of the slide, level-0 pixels: QuPath begins to count at its corner.
    grid
        Box whose corner is that of the tile grid.
    stride_px0, footprint_px0
        Step between tiles and size of a tile, level-0 pixels.
    mpp
        µm per level-0 pixel.
    """

    slide_id: str
    class_name: str
    probability: float | None
    model_id: str
    fingerprint: str
    x: NDArray[np.integer]
    y: NDArray[np.integer]
    scores: Mapping[str, NDArray[np.float32]]
    threshold: float
    size_px0: Size
    bounds: Box
    grid: Box
    stride_px0: Scale
    footprint_px0: Scale
    mpp: Scale

    def __len__(self) -> int:
        return len(self.x)

    @property
    def score(self) -> NDArray[np.float32]:
        """Scores of the first map, shape (N,)."""
        return next(iter(self.scores.values()))

    @cached_property
    def rasters(self) -> dict[str, Raster]:
        """Each map on the tile grid; all of one shape."""
        return {
            name: tile_raster(
                self.x,
                self.y,
                values,
                bounds=self.grid,
                stride_px0=self.stride_px0,
                footprint_px0=self.footprint_px0,
            )
            for name, values in self.scores.items()
        }

    @property
    def raster(self) -> Raster:
        """The first map."""
        return next(iter(self.rasters.values()))

    @property
    def bounds_origin(self) -> Point:
        """Where QuPath begins to count, level-0 pixels."""
        return Point(self.bounds.x, self.bounds.y)

    @property
    def tile_um(self) -> Scale:
        """Size of a tile in µm."""
        return self.footprint_px0.times(self.mpp)

    @property
    def cell_um(self) -> Scale:
        """Size of a cell of the raster in µm."""
        return self.stride_px0.times(self.mpp)

    @property
    def quarter_tile_px0(self) -> float:
        """A quarter of a tile's shorter side, level-0 pixels: what outlines are simplified by."""
        return min(self.footprint_px0) / 4

    def best_first(self) -> NDArray[np.int64]:
        """Tiles by falling score of the first map; equal ones in the order of the tiles."""
        return np.argsort(-self.score, kind="stable")
