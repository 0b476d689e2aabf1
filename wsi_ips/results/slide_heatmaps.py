"""Heatmaps of one slide: from scores, tile index and pixels to pictures with tested sidecars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import read_annotation
from wsi_ips.errors import EvaluationError
from wsi_ips.geometry import Box, Point
from wsi_ips.results.alignment import ALIGNMENT_TILES, LEAST_ALIGNMENT, alignment_correlation
from wsi_ips.results.overlay import LONGEST_PX, Caption, View, draw_overlay, mask_in, sidecar
from wsi_ips.results.score_maps import SCORE_MAPS, TileScores
from wsi_ips.results.score_raster import tile_raster
from wsi_ips.slides import RGB, SlideReader, read_area
from wsi_ips.tiles.index import TileIndex

MARGIN = 0.06
"""Share of the tiled area that is shown around it."""


@dataclass(frozen=True)
class SlideHeatmaps:
    """Everything that the maps of one slide are drawn from."""

    index: TileIndex  # index, scores: Tiles and their scores
    scores: TileScores
    view: View  # view, caption: Pixels of the tiled area, and texts for the pictures
    caption: Caption
    # compared, patches: Rows of the tiles for the self-test, and their pixels, read again, uint8, shape (k, h, w, 3)
    compared: NDArray[np.int32]
    patches: RGB
    note: Callable[[str], None]  # Called with messages about the self-test

    def draw(self, kind: str, fingerprint: str) -> tuple[Image.Image, dict[str, Any]]:
        """Return the picture of a score map and its sidecar, which holds the result of the self-test."""
        index, caption = self.index, self.caption
        raster = tile_raster(
            index.x,
            index.y,
            SCORE_MAPS[kind].values(self.scores),
            bounds=index.grid,
            stride_px0=index.stride_px0,
            footprint_px0=index.plan.footprint_px0,
        )
        picture = draw_overlay(self.view, raster, caption, kind=kind)
        plain = picture
        if caption.outlines:  # outlines would cover the texture that the self-test compares
            plain = draw_overlay(self.view, raster, replace(caption, outlines=()), kind=kind)
        facts = sidecar(self.view, raster, caption, kind=kind, fingerprint=fingerprint)
        return picture, facts | {"alignment": self._alignment(plain, facts)}

    def _alignment(self, picture: Image.Image, facts: dict[str, Any]) -> float | None:
        """Return about 1 where the map lies on its tissue; None where nothing can be compared."""
        x, y = self.index.x[self.compared], self.index.y[self.compared]
        try:
            found = alignment_correlation(np.asarray(picture), facts, self.patches, x, y)
        except EvaluationError as error:
            self.note(str(error))
            return None
        if found < LEAST_ALIGNMENT:
            self.note(
                f"slide {facts['slide_id']}: the map may be off its tissue (alignment {found:.2f}); please report it"
            )
        return round(found, 4)


def view_of(reader: SlideReader, index: TileIndex, mpp: float, tissue: BaseGeometry | None) -> View:
    """Return the tiled area of a slide as pixels, at ``mpp`` or coarser where the area is large."""
    area = tiled_area(index)
    pixels, found_mpp = read_area(reader, area, mpp, LONGEST_PX)
    view = View(pixels, area, found_mpp)
    return view if tissue is None else replace(view, tissue=mask_in(view, tissue))


def tiled_area(index: TileIndex) -> Box:
    """Return the box around all tiles with a margin, clipped to the slide."""
    width, height = index.plan.footprint_px0
    margin = int(max(np.ptp(index.x) + width, np.ptp(index.y) + height) * MARGIN)
    left, top = max(0, int(index.x.min()) - margin), max(0, int(index.y.min()) - margin)
    right = min(index.size_px0.width, int(index.x.max() + width) + margin)
    bottom = min(index.size_px0.height, int(index.y.max() + height) + margin)
    return Box(left, top, right - left, bottom - top)


def best_tiles(scores: TileScores) -> NDArray[np.int32]:
    """Return the rows of the most suspicious tiles, highest probability first, for the self-test."""
    return np.argsort(-scores.positive_probability, kind="stable")[:ALIGNMENT_TILES].astype(np.int32)


def lesion_outlines(annotation: Path | None, bounds: Box) -> tuple[NDArray[np.float64], ...]:
    """Return the outer rings of the annotated lesions, each of shape (n, 2); empty without an annotation."""
    if annotation is None:
        return ()
    regions = read_annotation(annotation, bounds_origin=Point(bounds.x, bounds.y))
    return tuple(shapely.get_coordinates(lesion.exterior)[:-1] for lesion in regions.lesions())
