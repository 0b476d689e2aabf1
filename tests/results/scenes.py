"""Small slides with tiles whose place is known: bounds offset, mpp_x != mpp_y, strides that are no integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi_ips.geometry import Box, Point, Pyramid, ReadPlan, Scale, Size, plan_read
from wsi_ips.results.overlay import Caption, View
from wsi_ips.results.score_raster import Raster, tile_raster
from wsi_ips.slides import ArrayReader, read_area, read_patch
from wsi_ips.tiles.index import stride_px0, tile_grid

SIZE, MPP = Size(1403, 911), Scale(0.5, 0.5)
CAPTION = Caption(slide_id="slide_7", class_name="tumor", probability=0.25, model_id="net-0123")


@dataclass(frozen=True)
class Scene:
    """A slide, its tiles and a picture of it."""

    reader: ArrayReader
    bounds: Box
    plan: ReadPlan
    stride_px: int
    corners: np.ndarray
    view: View

    def raster(self, score: np.ndarray, keep: np.ndarray | slice = np.s_[:]) -> Raster:
        x, y = self.corners[keep].T
        return tile_raster(
            x,
            y,
            score[keep],
            bounds=self.bounds,
            stride_px0=stride_px0(self.plan, stride_px=self.stride_px),
            footprint_px0=self.plan.footprint_px0,
        )

    def patches(self, tiles: np.ndarray) -> np.ndarray:
        return np.stack([read_patch(self.reader, Point(*self.corners[t].tolist()), self.plan) for t in tiles])


def tissue(size: Size, seed: int = 0) -> np.ndarray:
    """Pink with structure of several sizes, so that no two places look alike."""
    rng = np.random.default_rng(seed)
    grey = np.zeros((size.height, size.width))
    for step, strength in ((3, 25), (11, 35), (40, 30)):
        coarse = rng.normal(0, 1, (size.height // step + 2, size.width // step + 2))
        grey += strength * coarse.repeat(step, 0).repeat(step, 1)[: size.height, : size.width]
    return np.clip(np.array([205, 140, 190]) + grey[..., None] * [0.6, 1.0, 0.5], 0, 255).astype(np.uint8)


def scene(
    *,
    size: Size = SIZE,
    mpp: Scale = MPP,
    bounds: Box | None = None,
    target_mpp: float = 0.5,
    patch_px: int = 64,
    stride_px: int = 64,
    picture_mpp: float = 2.0,
) -> Scene:
    """Lay tiles over a slide and read its picture."""
    bounds = bounds or Box(0, 0, *size)
    reader = ArrayReader([tissue(size)], mpp, bounds=bounds)
    plan = plan_read(Pyramid((size,), mpp), target_mpp=target_mpp, patch_size=Size(patch_px, patch_px))
    area = Box(max(0, bounds.x - 17), max(0, bounds.y - 5), 0, 0)
    area = Box(area.x, area.y, bounds.right - area.x, bounds.bottom - area.y)
    pixels, view_mpp = read_area(reader, area, picture_mpp)
    return Scene(
        reader, bounds, plan, stride_px, tile_grid(bounds, plan, stride_px=stride_px), View(pixels, area, view_mpp)
    )


SCENES = {
    "plain": {},
    "bounds": {"bounds": Box(211, 97, 1100, 700)},
    "mpp_x != mpp_y": {"mpp": Scale(0.25, 0.31), "target_mpp": 0.62, "patch_px": 40, "stride_px": 40},
    "stride no integer": {
        "mpp": Scale(0.243, 0.2437),
        "target_mpp": 0.5,
        "patch_px": 37,
        "stride_px": 37,
        "bounds": Box(13, 29, 1350, 850),
    },
    "gaps": {"stride_px": 96, "bounds": Box(101, 33, 1200, 800)},
    "overlap by half": {"stride_px": 32},
    "overlap, uneven": {"stride_px": 43, "bounds": Box(7, 3, 1200, 800)},
}
