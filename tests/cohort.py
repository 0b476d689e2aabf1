"""Small slides for tests of training and prediction: real pixels in memory, not square, not symmetric."""

from __future__ import annotations

import numpy as np
import shapely

from wsi_ips.annotations import Area
from wsi_ips.geometry import Scale
from wsi_ips.slides import ArrayReader
from wsi_ips.tiles.index import IndexOrigin, TileRules, build_index
from wsi_ips.tiles.stream import SlideTiles
from wsi_ips.tissue.mask import TissueMask

PATCH_PX = 32


def textured_pixels(*, label: int, seed: int, columns: int = 7, rows: int = 4) -> np.ndarray:
    """A slide of tiles with fine noise; with label 1 three of its tiles have coarse noise instead."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 220, (rows * PATCH_PX, columns * PATCH_PX, 3), np.uint8)
    if label:
        for tile in rng.permutation(rows * columns)[:3]:
            y, x = (tile // columns) * PATCH_PX, (tile % columns) * PATCH_PX
            coarse = rng.integers(90, 220, (PATCH_PX // 8, PATCH_PX // 8, 3), np.uint8)
            pixels[y : y + PATCH_PX, x : x + PATCH_PX] = coarse.repeat(8, 0).repeat(8, 1)
    return pixels


def textured_slide(slide_id: str, *, label: int, seed: int, columns: int = 7, rows: int = 4) -> SlideTiles:
    """The tiles of such a slide, ready to stream at slot 0."""
    pixels = textured_pixels(label=label, seed=seed, columns=columns, rows=rows)
    scale = Scale(0.5, 0.5)

    def opened() -> ArrayReader:
        return ArrayReader([pixels], scale, name=slide_id)

    mask = TissueMask(
        mask=np.ones((8, 14), bool),
        px0_per_mask_px=Scale(pixels.shape[1] / 14, pixels.shape[0] / 8),
        threshold=0.0,
        method="all",
    )
    with opened() as reader:
        index = build_index(
            reader.info,
            mask,
            TileRules(0.5, PATCH_PX, PATCH_PX, 0.5),
            IndexOrigin(slide_id, slide_id, slide_id),
        )
    return SlideTiles(slot=0, slide_id=slide_id, index=index, open=opened, tiles=None)


def outlines_of(*, seed: int, group: str = "tumor", columns: int = 7, rows: int = 4) -> list[Area]:
    """Outlines of the three coarse tiles of such a slide with label 1, exactly along their edges."""
    rng = np.random.default_rng(seed)
    rng.integers(90, 220, (rows * PATCH_PX, columns * PATCH_PX, 3), np.uint8)  # as many numbers as its pixels take
    corners = [(tile % columns * PATCH_PX, tile // columns * PATCH_PX) for tile in rng.permutation(rows * columns)[:3]]
    return [Area(group, shapely.box(x, y, x + PATCH_PX, y + PATCH_PX)) for x, y in corners]
