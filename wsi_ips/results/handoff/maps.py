"""Scores and positions of the tiles of one slide, from which hand-off files are written. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from wsi_ips.geometry import Box, Point, Scale, Size
from wsi_ips.results.score_maps import LESION_MAP, SCORE_MAPS, TileScores
from wsi_ips.results.score_raster import Raster, tile_raster
from wsi_ips.tiles import TileIndex


class SlideResult(TileScores, Protocol):
    """Scores of a slide and its verdict; :class:`wsi_ips.inference.slide_scores.SlideScores` provides it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the positive one last."""
        ...

    @property
    def probability(self) -> tuple[float, ...]:
        """Probability of each class for the whole slide."""
        ...


@dataclass(frozen=True)
class ScoreMaps:
    """Scores of the tiles of one slide, from our model or another."""

    slide_id: str  # Identity of the slide; file names begin with it
    class_name: str  # Meaning of a high score of the first map, for example ``tumor``
    probability: float | None  # Probability of that class for the whole slide; None where it is not known
    model_id: str  # Identity of the model
    fingerprint: str  # Fingerprint of everything the files are made from; object ids are derived from it
    x: NDArray[np.integer]  # x, y: Top-left corners of the tiles, level-0 pixels of the full slide, shape (N,)
    y: NDArray[np.integer]
    # Score per tile, shape (N,), 0-1, by name of the map. Lesions are outlined on the first map
    scores: Mapping[str, NDArray[np.float32]]
    threshold: float  # Tiles with at least this score on the first map are positive
    size_px0: Size  # Size of level 0
    bounds: Box  # Scanned part of the slide, level-0 pixels; its corner is the origin of coordinates in QuPath
    grid: Box  # Box whose top-left corner is the origin of the tile grid
    stride_px0: Scale  # stride_px0, footprint_px0: Step between tiles and size of a tile, level-0 pixels
    footprint_px0: Scale
    mpp: Scale  # µm per level-0 pixel

    @classmethod
    def of(
        cls,
        index: TileIndex,
        scores: SlideResult,
        *,
        names: Sequence[str],
        threshold: float,
        model_id: str,
        fingerprint: str,
    ) -> Self:
        """Collect the named score maps of a slide; the first one is always the map that lesions are outlined on."""
        return cls(
            slide_id=index.slide_id,
            class_name=scores.classes[-1],
            probability=scores.probability[-1],
            model_id=model_id,
            fingerprint=fingerprint,
            x=index.x,
            y=index.y,
            scores={name: SCORE_MAPS[name].values(scores) for name in dict.fromkeys((LESION_MAP, *names))},
            threshold=threshold,
            size_px0=index.size_px0,
            bounds=index.bounds,
            grid=index.grid,
            stride_px0=index.stride_px0,
            footprint_px0=index.plan.footprint_px0,
            mpp=index.mpp,
        )

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
        """Origin of coordinates in QuPath, level-0 pixels."""
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
        """A quarter of a tile's shorter side, level-0 pixels: the tolerance of simplified outlines."""
        return min(self.footprint_px0) / 4

    def best_first(self) -> NDArray[np.int64]:
        """Return the tiles by falling score of the first map; equal scores stay in tile order."""
        return np.argsort(-self.score, kind="stable")
