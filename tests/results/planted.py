"""Maps to hand over: a lesion whose outline is known, scored by the tiles it fills, and maps drawn by hand."""

from __future__ import annotations

import numpy as np
import shapely

from tests.results.scenes import Scene, scene
from wsi_ips.annotations import tumour_fraction
from wsi_ips.geometry import Box, Scale, Size
from wsi_ips.results.handoff_package import Material, PackageContent
from wsi_ips.results.score_raster import ScoreMaps
from wsi_ips.tiles.index import stride_px0


def planted_box(s: Scene) -> shapely.Polygon:
    """A box that is aligned with nothing and reaches to the last tiles on the right."""
    x, y, width, height = s.bounds
    right = s.corners[:, 0].max() + s.plan.footprint_px0.x
    return shapely.box(x + 0.47 * width, y + 0.31 * height, right, y + 0.72 * height)


def tile_scores(s: Scene, region: shapely.Polygon) -> np.ndarray:
    """1 where a tile lies in a region by half or more, else 0."""
    boxes = np.empty((len(s.corners), 4))
    boxes[:, :2], boxes[:, 2:] = s.corners, s.plan.footprint_px0
    return (tumour_fraction(region, boxes) >= 0.5).astype(np.float32)


def maps_of(s: Scene, score: np.ndarray, **changes: object) -> ScoreMaps:
    """Scores of a scene as they are handed over; attention is another number for every tile."""
    values = {
        "slide_id": "a.b (1)",
        "class_name": "tumor",
        "probability": 0.75,
        "model_id": "net-0123",
        "fingerprint": "f00d",
        "x": s.corners[:, 0],
        "y": s.corners[:, 1],
        "scores": {
            "probability": np.asarray(score, np.float32),
            "attention": np.linspace(0, 1, len(score), dtype=np.float32),
        },
        "threshold": 0.5,
        "size_px0": Size(*s.reader.info.size_px0),
        "bounds": s.bounds,
        "grid": s.bounds,
        "stride_px0": stride_px0(s.plan, stride_px=s.stride_px),
        "footprint_px0": s.plan.footprint_px0,
        "mpp": s.reader.info.mpp,
    }
    return ScoreMaps(**(values | changes))


def of_grid(values: np.ndarray, *, tile: float = 64.0, **changes: object) -> ScoreMaps:
    """A map drawn by hand: a tile per cell that is not NaN."""
    row, column = np.nonzero(np.isfinite(values))
    width, height = (int(side * tile) for side in values.shape[::-1])
    s = Scene(scene().reader, Box(0, 0, width, height), scene().plan, 64, np.zeros((0, 2), int), scene().view)
    return maps_of(
        s,
        values[row, column],
        x=(column * tile).astype(int),
        y=(row * tile).astype(int),
        stride_px0=Scale(tile, tile),
        footprint_px0=Scale(tile, tile),
        size_px0=Size(width, height),
        **changes,
    )


PICTURE = """
..........
.########.
.#......#.
.#.##...#.
.#.##...#.
.#......##
.########.
.........#
###.......
###.......
"""


def content_of(maps: ScoreMaps) -> PackageContent:
    return PackageContent.of(maps, Material())


def drawn(picture: str = PICTURE) -> np.ndarray:
    rows = picture.split()
    return np.array([[0.9 if cell == "#" else 0.1 for cell in row] for row in rows], np.float32)
