"""What of a slide lies in its tiles: how much of the tissue, and how much of each annotated lesion. Pure geometry.

Tissue that no tile covers is not analysed. It is measured here once, when a slide is tiled; tables, pictures, report
and viewer show these figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

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
NO_TILE = "no tile"  # reason of tissue where no tile was laid: too little of it there, or the edge of the scan
Boxes = NDArray[np.float64]  # (N, 4): x, y, width, height in level-0 pixels


@dataclass(frozen=True)
class NotAnalysed:
    """Tissue of a slide that none of its tiles covers."""

    share: float  # of the tissue area, 0-1
    mm2: Mapping[str, float]  # area by reason: a flag that excluded its tiles, or :data:`NO_TILE`; without zeros

    @property
    def area_mm2(self) -> float:
        """Whole area."""
        return round(math.fsum(self.mm2.values()), 4)

    @property
    def share_flagged(self) -> float:
        """Share of the tissue area that flags excluded."""
        area = math.fsum(self.mm2.values())
        return self.share * math.fsum(v for name, v in self.mm2.items() if name != NO_TILE) / area if area else 0.0

    @property
    def areas(self) -> str:
        """Areas by reason for people, like ``pen 3.21 mm², no tile 0.4 mm²``."""
        return ", ".join(f"{name} {area:.3g} mm²" for name, area in self.mm2.items())

    def __str__(self) -> str:
        return f"{self.share:.1%} of the tissue" + (f" ({self.areas})" if self.mm2 else "")

    @property
    def stored(self) -> str:
        """Areas in mm² for a cell of a table, like ``pen 3.2146, no tile 0.4``; :meth:`of_stored` reads it."""
        return ", ".join(f"{name} {area}" for name, area in self.mm2.items())

    @property
    def facts(self) -> dict[str, Any]:
        """Figures for JSON files: the area, the areas by reason and the share."""
        by_reason = dict(self.mm2)
        return {
            "not_analysed_mm2": self.area_mm2,
            "not_analysed_by_reason_mm2": by_reason,
            "share_not_analysed": self.share,
        }

    @classmethod
    def of_stored(cls, share: float, areas: str) -> Self:
        """Return what was stored as a share and as :attr:`stored`."""
        pairs = [part.rpartition(" ") for part in areas.split(", ") if part]
        return cls(share, {name: float(area) for name, _, area in pairs})


def not_analysed(tissue: TissueMask, kept: Boxes, excluded: Mapping[str, Boxes], *, mpp: Scale) -> NotAnalysed | None:
    """Measure the tissue that the tiles kept do not cover; None where there is no tissue.

    Tissue under tiles that were ``excluded``, by reason, counts for the first of these reasons. A pixel of the mask is
    covered where its centre lies in a tile. ``mpp`` is µm per level-0 pixel.
    """
    total = int(np.count_nonzero(tissue.mask))
    if total == 0:
        return None
    left, found = tissue.mask & ~_covered(tissue, kept), {}
    unseen = int(np.count_nonzero(left))
    for reason, boxes in excluded.items():
        here = left & _covered(tissue, boxes) if len(boxes) else left[:0]
        if here.any():
            found[reason], left = int(np.count_nonzero(here)), left & ~here
    rest = unseen - sum(found.values())
    mm2_per_px = tissue.area_um2(mpp) / total / 1e6
    mm2 = {reason: round(count * mm2_per_px, 4) for reason, count in (found | {NO_TILE: rest}).items() if count}
    return NotAnalysed(round(unseen / total, 4), mm2)


def _covered(tissue: TissueMask, boxes: Boxes) -> NDArray[np.bool_]:
    """Return which pixels of a mask have their centre in a box, (height, width)."""
    (height, width), scale = tissue.mask.shape, tissue.px0_per_mask_px
    x, y, w, h = np.asarray(boxes, np.float64).reshape(-1, 4).T
    left, right = (np.clip(np.ceil(side / scale.x - 0.5), 0, width).astype(np.intp) for side in (x, x + w))
    top, bottom = (np.clip(np.ceil(side / scale.y - 0.5), 0, height).astype(np.intp) for side in (y, y + h))
    steps = np.zeros((height + 1, width + 1), np.int32)  # +1 where boxes begin, -1 where they end
    for rows, columns, step in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(steps, (rows, columns), step)
    np.cumsum(steps, axis=0, out=steps)
    np.cumsum(steps, axis=1, out=steps)
    return np.asarray(steps[:height, :width] > 0)


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
    # After what less than half of it is left: "segmentation", "tiling", or the flag that excluded its tiles; or empty
    lost_to: str

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

    def unseen(self, tile_um2: float) -> tuple[LesionRecall, ...]:
        """Return the lesions whose loss is an error: those without any tile that are as large as a tile, ``tile_um2``.

        A smaller one can fall between the tiles by chance, which does no harm where other lesions are in tiles. Where
        none is, no tile shows what the slide is labelled for, so all of them count.
        """
        outside = tuple(lesion for lesion in self.lesions if lesion.in_tiles == 0)
        if len(outside) == len(self.lesions):
            return outside
        return tuple(lesion for lesion in outside if lesion.area_um2 >= tile_um2)

    def _share(self, shares: list[float]) -> float:
        areas = [lesion.area_um2 for lesion in self.lesions]
        return math.fsum(a * s for a, s in zip(areas, shares, strict=True)) / math.fsum(areas) if areas else math.nan


def tissue_recall(
    lesions: Sequence[shapely.Polygon],
    tissue: TissueMask,
    kept: Boxes,
    excluded: Mapping[str, Boxes] | None = None,
    *,
    mpp: Scale,
) -> Recall:
    """Measure what segmentation and tiling keep of each lesion; tiles as in :func:`not_analysed`."""
    trees = {reason: _tree(boxes) for reason, boxes in {"": kept, **(excluded or {})}.items()}
    return Recall(tuple(_of_lesion(lesion, tissue, trees, mpp) for lesion in lesions))


def _tree(boxes: Boxes) -> shapely.STRtree:
    x, y, width, height = np.asarray(boxes, np.float64).reshape(-1, 4).T
    return shapely.STRtree(shapely.box(x, y, x + width, y + height))


def longest_diameter_um(region: BaseGeometry, mpp: Scale) -> float:
    """Return the largest distance between two points of a region."""
    hull = shapely.convex_hull(region)
    points = shapely.get_coordinates(hull) * np.array(mpp)
    steps = points[:, None] - points[None]
    return float(np.sqrt((steps**2).sum(-1).max())) if len(points) else 0.0


def size_class(diameter_um: float) -> SizeClass:
    """Return the class of a lesion by its longest diameter."""
    return "ITC" if diameter_um < ITC_BELOW_UM else "macro" if diameter_um > MACRO_ABOVE_UM else "micro"


def _of_lesion(
    lesion: shapely.Polygon, tissue: TissueMask, trees: Mapping[str, shapely.STRtree], mpp: Scale
) -> LesionRecall:
    in_tissue, in_tiles = _share_in_mask(lesion, tissue), _share_in_tiles(lesion, trees[""])
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
        lost_to="" if min(in_tissue, in_tiles) >= LOST_BELOW else _lost_to(lesion, in_tissue, trees),
    )


def _lost_to(lesion: shapely.Polygon, in_tissue: float, trees: Mapping[str, shapely.STRtree]) -> str:
    """Return what took most of a lost lesion."""
    if in_tissue < LOST_BELOW:
        return "segmentation"
    shares = {reason: _share_in_tiles(lesion, tree) for reason, tree in trees.items() if reason}
    most = max(shares, key=lambda reason: shares[reason], default="")
    rest = 1 - _share_in_tiles(lesion, trees[""]) - sum(shares.values())  # in no tile at all
    return most if most and shares[most] > max(0.0, rest) else "tiling"


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
