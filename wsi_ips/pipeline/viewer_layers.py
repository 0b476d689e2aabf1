"""Layers and tile table of a slide for the viewer: the model's score maps, annotated tumour, tissue. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wsi_ips.geometry import Point, Scale
from wsi_ips.inference.slide_scores import SlideScores
from wsi_ips.results.overlay import palette
from wsi_ips.results.score_maps import SCORE_MAPS
from wsi_ips.results.score_raster import tile_raster
from wsi_ips.tiles import TileIndex
from wsi_ips.viewer import Column, Layer, Look, TileTable, eight_bits

MOST_CELLS = 8_000_000
"""Largest map that is sent to the browser, values."""
FIRST_KEY = 2
"""Key of the first map; 1 shows H&E alone."""
TRUTH = Look(
    kind="truth",
    title="Annotated tumour",
    legend=("none", "half", "whole tile"),
    strength=(0.25, 0.75, 1),
    verb="Annotated",
    draws="outlines",
    lowest=2,
)
TISSUE = Look(
    kind="tissue",
    title="Tissue and tiles",
    legend=("none", "half", "whole tile"),
    strength=(0.2, 0.35, 1),
    verb="Tiled",
    draws="grid",
)


def map_look(kind: str, key: int) -> Look:
    """Return how the viewer shows a score map; ``key`` is the number that selects it on the keyboard."""
    score_map = SCORE_MAPS[kind]
    return Look(
        kind=kind,
        key=key,
        title=score_map.title,
        legend=score_map.marks,
        strength=(0, 1, score_map.opacity_power),
        threshold=score_map.first_threshold,
        comparable=score_map.comparable,
        from_model=True,
    )


def layers_and_tiles(
    index: TileIndex, scores: SlideScores | None, maps: Sequence[str]
) -> tuple[tuple[Layer, ...], TileTable]:
    """Return what the viewer shows of a tiled slide; ``scores`` is None where the slide is not predicted."""
    truth, tissue = index.tumour_fraction, np.asarray(index.tissue_fraction, np.float32)
    shown: list[tuple[Look, str, NDArray[np.float32]]] = []
    if scores is not None:
        for key, (kind, entry) in enumerate(((kind, SCORE_MAPS[kind]) for kind in maps), FIRST_KEY):
            shown.append((map_look(kind, key), entry.colours, entry.values(scores)))
    if truth is not None:
        shown.append((replace(TRUTH, key=FIRST_KEY + len(maps)), "Oranges", np.asarray(truth, np.float32)))
    shown.append((replace(TISSUE, key=FIRST_KEY + len(maps) + 1), "Greens", tissue))
    values = {look.kind: of_tiles for look, _, of_tiles in shown}
    columns = [Column(look.kind, look.title, _shown_as(look), ranked=look.kind != TISSUE.kind) for look, *_ in shown]
    if scores is not None:
        values["weight"] = np.asarray(scores.attention * len(index), np.float32)
        columns.append(Column("weight", "Attention / mean", "times"))
    table = TileTable(
        columns={"x": index.x, "y": index.y, **values},
        shown=tuple(columns),
        origin_px0=Point(index.grid.x, index.grid.y),
        stride_px0=index.stride_px0,
        footprint_px0=index.plan.footprint_px0,
        patch_size=index.plan.patch_size,
        patch_mpp=index.plan.effective_mpp,
    )
    layers = tuple(layer_of(index, look, colours, of_tiles) for look, colours, of_tiles in shown) if len(index) else ()
    return layers, table


def layer_of(index: TileIndex, look: Look, colours: str, score: NDArray[np.float32]) -> Layer:
    """Return a layer whose cells are fine enough to lie wholly inside or outside every tile.

    Stride and tile size are whole numbers of patch pixels, so cells of their greatest common divisor are fine enough:
    one cell per tile where tiles lie side by side. Where that gives too many cells, they are larger and the edges of
    tiles less exact.
    """
    raster = tile_raster(
        index.x,
        index.y,
        score,
        bounds=index.grid,
        stride_px0=index.stride_px0,
        footprint_px0=index.plan.footprint_px0,
    )
    rows, columns = raster.starts.shape
    fine = index.stride_px // math.gcd(index.stride_px, index.plan.patch_size.width, index.plan.patch_size.height)
    parts = max(1, min(fine, math.isqrt(MOST_CELLS // max(1, rows * columns))))
    cell = Scale(raster.cell_px0.x / parts, raster.cell_px0.y / parts)
    x = raster.origin_px0.x + (np.arange(columns * parts) + 0.5) * cell.x
    y = raster.origin_px0.y + (np.arange(rows * parts) + 0.5) * cell.y
    return Layer(look, eight_bits(raster.sample(x, y)), raster.origin_px0, cell, palette(colours))


def _shown_as(look: Look) -> str:
    if not look.from_model:
        return "share"
    return "number" if look.comparable else "rank"
