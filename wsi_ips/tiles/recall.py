"""Tissue recall: how much of the annotated tumour segmentation and tiling keep. Pure geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_ips.geometry import Box, Scale
from wsi_ips.tissue.mask import TissueMask, covered

SizeClass = Literal["ITC", "micro", "macro"]
# Longest diameter: isolated tumour cells below, macrometastases above (CAMELYON17, TNM)
ITC_BELOW_UM, MACRO_ABOVE_UM = 200.0, 2_000.0
LOST_BELOW = 0.5  # A lesion is lost if less than this share of its area is left


@dataclass(frozen=True)
class LesionRecall:
    """Recall of one lesion."""

    x_px0: int  # a point in it
    y_px0: int
    area_um2: float
    diameter_um: float  # the longest
    size_class: SizeClass  # by the diameter of this outline alone
    in_tissue: float  # share of its area in the tissue mask
    in_tiles: float  # share of its area in tiles
    lost_to: Literal["", "segmentation", "tiling"]  # after which less than half of it is left

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by column."""
        return asdict(self)


@dataclass(frozen=True)
class Recall:
    """Recall of the tumour of one slide; ``lesions`` are ordered from the largest."""

    lesions: tuple[LesionRecall, ...]

    @property
    def in_tissue(self) -> float:
        """Share of the annotated area in the tissue mask; NaN where nothing is annotated."""
        return self._share([lesion.in_tissue for lesion in self.lesions])

    @property
    def in_tiles(self) -> float:
        """Share of the annotated area in tiles; NaN where nothing is annotated."""
        return self._share([lesion.in_tiles for lesion in self.lesions])

    @property
    def lost(self) -> int:
        """Lesions lost to segmentation or tiling."""
        return sum(bool(lesion.lost_to) for lesion in self.lesions)

    def _share(self, shares: list[float]) -> float:
        areas = [lesion.area_um2 for lesion in self.lesions]
        return math.fsum(a * s for a, s in zip(areas, shares, strict=True)) / math.fsum(areas) if areas else math.nan


def tissue_recall(
    lesions: Sequence[shapely.Polygon], tissue: TissueMask, boxes_px0: NDArray[np.float64], *, mpp: Scale
) -> Recall:
    """Measure what segmentation and tiling keep of each lesion; the tiles kept are x, y, width, height (N, 4)."""
    x, y, width, height = np.asarray(boxes_px0, np.float64).reshape(-1, 4).T
    tree = shapely.STRtree(shapely.box(x, y, x + width, y + height))
    return Recall(tuple(_of_lesion(lesion, tissue, tree, mpp) for lesion in lesions))


def longest_diameter_um(region: BaseGeometry, mpp: Scale) -> float:
    """Return the largest distance between two points of a region."""
    hull = shapely.convex_hull(region)
    points = shapely.get_coordinates(hull) * np.array(mpp)
    steps = points[:, None] - points[None]
    return float(np.sqrt((steps**2).sum(-1).max())) if len(points) else 0.0


def size_class(diameter_um: float) -> SizeClass:
    """Return the class of a lesion by its longest diameter."""
    return "ITC" if diameter_um < ITC_BELOW_UM else "macro" if diameter_um > MACRO_ABOVE_UM else "micro"


def _of_lesion(lesion: shapely.Polygon, tissue: TissueMask, tree: shapely.STRtree, mpp: Scale) -> LesionRecall:
    in_tissue, in_tiles = _share_in_mask(lesion, tissue), _share_in_tiles(lesion, tree)
    point = lesion.representative_point()
    diameter = longest_diameter_um(lesion, mpp)
    return LesionRecall(
        x_px0=round(point.x),
        y_px0=round(point.y),
        area_um2=float(lesion.area * mpp.x * mpp.y),
        diameter_um=diameter,
        size_class=size_class(diameter),
        in_tissue=in_tissue,
        in_tiles=in_tiles,
        lost_to="segmentation" if in_tissue < LOST_BELOW else "tiling" if in_tiles < LOST_BELOW else "",
    )


def _share_in_mask(lesion: shapely.Polygon, tissue: TissueMask) -> float:
    """Return the share of a lesion on tissue, on the raster of the mask; parts outside the slide are lost."""
    scale, (rows, columns) = tissue.px0_per_mask_px, tissue.mask.shape
    left, top, right, bottom = lesion.bounds
    x, y = math.floor(left / scale.x), math.floor(top / scale.y)
    window = Box(x, y, math.ceil(right / scale.x) - x + 1, math.ceil(bottom / scale.y) - y + 1)
    share = covered(lesion, window, scale)
    total = float(share.sum())
    if total == 0:  # smaller than a quarter of a mask pixel: its middle decides
        row, column = int(lesion.centroid.y / scale.y), int(lesion.centroid.x / scale.x)
        inside = 0 <= row < rows and 0 <= column < columns
        return float(inside and bool(tissue.mask[row, column]))
    ys, xs = slice(max(0, y), max(0, min(rows, window.bottom))), slice(max(0, x), max(0, min(columns, window.right)))
    part = tissue.mask[ys, xs]
    inner = share[ys.start - y : ys.start - y + part.shape[0], xs.start - x : xs.start - x + part.shape[1]]
    return float((inner * part).sum() / total)


def _share_in_tiles(lesion: shapely.Polygon, tree: shapely.STRtree) -> float:
    """Return the exact share of a lesion under tiles; overlapping tiles count once."""
    touched = tree.geometries[tree.query(lesion)]
    if not len(touched):
        return 0.0
    tiled = shapely.intersection(shapely.union_all(touched), lesion)  # one cut: an outline may have 10⁵ points
    return float(min(1.0, shapely.area(tiled) / lesion.area))
