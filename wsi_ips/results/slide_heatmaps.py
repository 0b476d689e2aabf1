"""Heatmaps of one slide: from scores, tile index and pixels to pictures with tested sidecars.

The self-test of a heatmap checks that its pixels show the tissue that the tiles were read from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry.base import BaseGeometry

from wsi_ips.errors import EvaluationError
from wsi_ips.geometry import Box
from wsi_ips.results.overlay import LONGEST_PX, Caption, View, draw_overlay, mask_in, sidecar
from wsi_ips.results.score_maps import SCORE_MAPS, TileScores
from wsi_ips.results.score_raster import index_raster
from wsi_ips.slides import RGB, SlideReader, read_area
from wsi_ips.tiles.index import TileIndex

MARGIN = 0.06  # share of the tiled area that is shown around it
LEAST_PX = 3  # smallest width and height of a tile to be compared, picture pixels
ALIGNMENT_TILES = 16  # tiles that a self-test reads again
LEAST_ALIGNMENT = 0.7  # a lower correlation is reported: the map may be off its tissue


class ReadAgain(NamedTuple):
    """Some tiles, read again from the slide for the self-test."""

    patches: RGB  # (k, h, w, 3)
    x: NDArray[np.integer]  # top-left corners, level-0 pixels, shape (k,)
    y: NDArray[np.integer]


@dataclass(frozen=True)
class SlideHeatmaps:
    """Everything needed to draw the maps of one slide."""

    index: TileIndex
    scores: TileScores
    view: View
    caption: Caption
    compared: NDArray[np.int32]  # rows of the tiles for the self-test, see :func:`best_tiles`
    patches: RGB  # their pixels, read again, (k, h, w, 3)
    note: Callable[[str], None]  # called with messages about the self-test

    def draw(self, kind: str, fingerprint: str) -> tuple[Image.Image, dict[str, Any]]:
        """Return the picture of a score map and its sidecar, which holds the result of the self-test."""
        caption, raster = self.caption, index_raster(self.index, SCORE_MAPS[kind].values(self.scores))
        picture = plain = draw_overlay(self.view, raster, caption, kind=kind)
        if caption.outlines:  # outlines would cover the texture that the self-test compares
            plain = draw_overlay(self.view, raster, replace(caption, outlines=()), kind=kind)
        facts = sidecar(self.view, raster, caption, kind=kind, fingerprint=fingerprint)
        read_again = ReadAgain(self.patches, self.index.x[self.compared], self.index.y[self.compared])
        return picture, facts | {"alignment": checked_alignment(plain, facts, read_again, kind, self.note)}


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


def checked_alignment(
    picture: Image.Image, facts: Mapping[str, Any], compared: ReadAgain, name: str, note: Callable[[str], None]
) -> float | None:
    """Return about 1 where map ``name`` lies on its tissue; None where nothing can be compared; note what is odd."""
    try:
        found = alignment_correlation(np.asarray(picture), facts, *compared)
    except EvaluationError as error:
        note(str(error))
        return None
    if found < LEAST_ALIGNMENT:
        note(f"slide {facts['slide_id']}: the {name} map may be off its tissue (alignment {found:.2f})")
    return round(found, 4)


def alignment_correlation(
    picture: RGB, facts: Mapping[str, Any], patches: RGB, x: NDArray[np.integer], y: NDArray[np.integer]
) -> float:
    """Return the correlation (-1 to 1) between tiles (see :class:`ReadAgain`) and the picture at their place.

    Every patch is averaged down to the picture's pixels and compared in grey with the pixels that it covers according
    to the sidecar ``facts``. The mean of each tile is subtracted first, so only texture counts and colour over a tile
    does not matter. Near 0 = another place. Raises EvaluationError where nothing can be compared.
    """
    pairs = [_pair(picture, facts, *tile) for tile in zip(patches, x.tolist(), y.tolist(), strict=True)]
    shown, read = (np.concatenate([p[side] for p in pairs if p] or [np.zeros(0)]) for side in (0, 1))
    spread = math.sqrt(float(shown @ shown) * float(read @ read))
    if spread == 0:
        raise EvaluationError(
            f"slide {facts['slide_id']}: alignment cannot be tested, {len(pairs)} tiles show no texture in the "
            "picture; draw it at a finer `heatmap.mpp`"
        )
    return float(shown @ read) / spread


def page_position(facts: Mapping[str, Any], x_px0: float, y_px0: float) -> tuple[float, float]:
    """Return where a level-0 position lies in a picture with this sidecar: column and row from the page's corner."""
    affine = facts["to_level0"]
    return (x_px0 - affine["c"]) / affine["a"], (y_px0 - affine["f"]) / affine["e"]


def _pair(
    picture: RGB, facts: Mapping[str, Any], patch: NDArray[np.uint8], x: int, y: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the grey values of one tile, mean subtracted: in the picture, and in the patch at picture resolution."""
    left, top = page_position(facts, x, y)
    right, bottom = page_position(facts, x + facts["tile_px0"][0], y + facts["tile_px0"][1])
    box_x, box_y, box_width, box_height = facts["map_box_px"]
    first, last = max(box_x, math.ceil(left)), min(box_x + box_width, math.floor(right))
    upper, lower = max(box_y, math.ceil(top)), min(box_y + box_height, math.floor(bottom))
    if last - first < LEAST_PX or lower - upper < LEAST_PX:
        return None
    height, width = patch.shape[:2]
    per_x, per_y = width / (right - left), height / (bottom - top)  # patch px per page px
    part = ((first - left) * per_x, (upper - top) * per_y, (last - left) * per_x, (lower - top) * per_y)
    grey = Image.fromarray(patch).convert("L").convert("F")
    read = np.asarray(grey.resize((last - first, lower - upper), Image.Resampling.BOX, box=part), np.float64)
    shown = np.asarray(Image.fromarray(picture[upper:lower, first:last]).convert("L"), np.float64)
    return (shown - shown.mean()).ravel(), (read - read.mean()).ravel()
