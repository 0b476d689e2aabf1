"""The tile index: the grid, where the tiles of one slide lie, and how their pixels are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import tumour_fraction
from wsi_ips.geometry import Box, ReadPlan, Scale, Size, plan_read
from wsi_ips.slides import SlideInfo
from wsi_ips.tissue.mask import TissueMask

SCHEMA_VERSION = 2
# Stored columns; ``tumour_fraction`` only where the slide is annotated
COLUMNS = {
    "x": np.int32,
    "y": np.int32,
    "tissue_fraction": np.float32,
    "tumour_fraction": np.float32,
    "flags": np.uint8,
}
# How the stored attributes of an index are read
ATTRIBUTES: dict[str, Callable[[Any], Any]] = {
    "slide_id": str,
    "size_px0": lambda stored: Size(*map(int, stored)),
    "bounds": lambda stored: Box(*map(int, stored)),
    "mpp": lambda stored: Scale(*map(float, stored)),
    "mpp_source": str,
    "reader": str,
    "plan": ReadPlan.from_dict,
    "stride_px": int,
    "tissue_method": str,
    "slide_identity": str,
    "fingerprint": str,
    "look": str,
}


@dataclass(frozen=True)
class TileRules:
    """Rules for laying tiles over a slide."""

    target_mpp: float = 0.5  # scale of the patches, µm/px
    patch_px: int = 256  # side of a patch
    stride_px: int | None = None  # step between tiles, patch pixels; None = the side
    # tiles with less tissue are left out; with 0, tiles without any tissue are still left out
    min_tissue_fraction: float = 0.25


@dataclass(frozen=True)
class IndexOrigin:
    """Origin of a tile index; stored with it."""

    slide_id: str = ""  # identity in the manifest
    slide_identity: str = ""  # content identity of the slide's file
    fingerprint: str = ""  # fingerprint of all inputs


@dataclass(frozen=True)
class TileIndex:
    """Tiles of one slide; row i is tile i, ordered by y, then x."""

    slide_id: str  # identity in the manifest
    x: NDArray[np.int32]  # (N,) top-left corners in level-0 pixels of the full slide
    y: NDArray[np.int32]
    tissue_fraction: NDArray[np.float32]  # (N,) 0-1
    tumour_fraction: NDArray[np.float32] | None  # (N,) 0-1; None where the slide has no annotation
    flags: NDArray[np.uint8]  # (N,) bits of `wsi_ips.tissue.artifacts.BITS`; 0 is none
    size_px0: Size  # size of level 0
    bounds: Box  # scanned part of the slide, level-0 pixels
    mpp: Scale  # µm per level-0 pixel
    mpp_source: str
    reader: str  # reader to which the plan's level number belongs
    plan: ReadPlan  # how a patch is read
    stride_px: int  # step between tiles in patch pixels
    tissue_method: str  # description of how the tissue was found
    slide_identity: str  # content identity of the slide's file
    fingerprint: str  # fingerprint of all inputs
    look: str = ""  # perceptual hash of the slide; empty where nothing can be recognised

    def __len__(self) -> int:
        return len(self.x)

    @property
    def stride_px0(self) -> Scale:
        """Step between tiles in level-0 pixels."""
        return stride_px0(self.plan, stride_px=self.stride_px)

    @property
    def boxes_px0(self) -> NDArray[np.float64]:
        """Boxes x, y, width, height in level-0 pixels, shape (N, 4)."""
        return boxes_of(np.stack([self.x, self.y], axis=1), self.plan)

    @property
    def centres_um(self) -> NDArray[np.float64]:
        """Centres of the tiles in µm from the upper left corner of the scanned area, shape (N, 2)."""
        boxes = self.boxes_px0
        return np.asarray((boxes[:, :2] + boxes[:, 2:] / 2 - self.bounds[:2]) * self.mpp)

    @property
    def grid(self) -> Box:
        """Box whose corner is that of the tile grid: of the bounds, or for tiles of another tool of the tiles."""
        if not len(self):
            return self.bounds
        stride, corner = self.stride_px0, np.array(self.bounds[:2])
        steps = (np.stack([self.x, self.y], axis=1) - corner) / stride
        if (np.abs(steps - np.rint(steps)) * stride < 1).all():
            return self.bounds
        left, top = int(self.x.min()), int(self.y.min())
        return Box(left, top, self.bounds.right - left, self.bounds.bottom - top)

    def flagged(self, flags: NDArray[np.uint8], *, exclude: int) -> Self:
        """Return the index with flags, uint8 (N,), without the tiles that have one of the bits ``exclude``."""
        keep = (flags & exclude) == 0
        columns = self.columns() | {"flags": flags}
        return replace(self, **{name: values[keep] for name, values in columns.items()})

    def moved(self, offset_px: tuple[int, int]) -> Self:
        """Return the index with every tile moved by (x, y) patch pixels, except where it would leave the scanned part.

        Such tiles stop at its edge. Ids and fractions of tissue and tumour stay those of the grid.
        """
        sides = zip((self.x, self.y), offset_px, self.plan.px0_per_patch_px, self.plan.footprint_px0, strict=True)
        ends = zip(self.bounds[:2], (self.bounds.right, self.bounds.bottom), strict=True)
        x, y = (
            _moved(starts, round(by * px0), low=low, high=math.floor(high - footprint + 1e-6))
            for (starts, by, px0, footprint), (low, high) in zip(sides, ends, strict=True)
        )
        return replace(self, x=x, y=y)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the stored columns by name."""
        return {name: value for name in COLUMNS if (value := getattr(self, name)) is not None}

    def to_attributes(self) -> dict[str, Any]:
        """Return everything but the columns, as plain JSON values."""
        plain = {name: getattr(self, name) for name in ATTRIBUTES}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
        return plain | {"plan": self.plan.to_dict(), "schema_version": SCHEMA_VERSION, "tiles": len(self)}

    @classmethod
    def from_stored(cls, attributes: dict[str, Any], columns: dict[str, NDArray[Any]]) -> Self:
        """Build an index from its stored :meth:`columns` and :meth:`to_attributes`."""
        stored: dict[str, Any] = {name: read(attributes[name]) for name, read in ATTRIBUTES.items()}
        missing = {name for name in COLUMNS if name not in columns} - {"tumour_fraction"}
        if missing:
            raise KeyError(f"column {min(missing)}")
        return cls(**stored | {name: columns.get(name) for name in COLUMNS})


def boxes_of(corners: NDArray[np.int32], plan: ReadPlan) -> NDArray[np.float64]:
    """Return boxes x, y, width, height in level-0 pixels, shape (N, 4), of corners of shape (N, 2)."""
    return np.column_stack([corners, np.tile(plan.footprint_px0, (len(corners), 1))])


def build_index(
    info: SlideInfo,
    mask: TissueMask,
    rules: TileRules | None = None,
    origin: IndexOrigin | None = None,
    *,
    tumour_region: BaseGeometry | None = None,
) -> TileIndex:
    """Lay the grid over a slide and keep the tiles with enough tissue; an empty index is valid."""
    rules, origin = rules or TileRules(), origin or IndexOrigin(info.name)
    stride_px = rules.stride_px or rules.patch_px
    plan = plan_read(info.pyramid, target_mpp=rules.target_mpp, patch_size=Size(rules.patch_px, rules.patch_px))
    corners = tile_grid(info.bounds, plan, stride_px=stride_px)
    fraction = mask.fraction(boxes_of(corners, plan))
    keep = (fraction >= rules.min_tissue_fraction) & (fraction > 0)
    index = index_at(corners[keep], plan, info, origin, stride_px=stride_px)
    truth = None if tumour_region is None else tumour_fraction(tumour_region, index.boxes_px0)
    return replace(index, tissue_fraction=fraction[keep], tumour_fraction=truth, tissue_method=mask.method)


def index_at(
    corners: NDArray[np.int32], plan: ReadPlan, info: SlideInfo, origin: IndexOrigin, *, stride_px: int
) -> TileIndex:
    """Return the index of tiles at some corners (x, y), shape (N, 2), of which tissue and tumour are not known."""
    return TileIndex(
        slide_id=origin.slide_id,
        x=np.ascontiguousarray(corners[:, 0]),
        y=np.ascontiguousarray(corners[:, 1]),
        tissue_fraction=np.full(len(corners), np.nan, np.float32),
        tumour_fraction=None,
        flags=np.zeros(len(corners), np.uint8),
        size_px0=info.size_px0,
        bounds=info.bounds,
        mpp=info.pyramid.mpp,
        mpp_source=info.mpp_source,
        reader=info.reader,
        plan=plan,
        stride_px=stride_px,
        tissue_method="",
        slide_identity=origin.slide_identity,
        fingerprint=origin.fingerprint,
    )


def tile_grid(bounds: Box, plan: ReadPlan, *, stride_px: int) -> NDArray[np.int32]:
    """Return the top-left corners of all tiles that lie wholly inside a box.

    Returns x, y in level-0 pixels of the full slide, int32, shape (N, 2), ordered by y, then x. Column i starts at
    ``round(i * stride)`` with the real stride, so none is more than half a level-0 pixel off, however far away.
    """
    stride = stride_px0(plan, stride_px=stride_px)
    xs = bounds.x + _starts(bounds.width, plan.footprint_px0.x, stride.x)
    ys = bounds.y + _starts(bounds.height, plan.footprint_px0.y, stride.y)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1)  # (rows, columns, 2)
    return grid.reshape(-1, 2).astype(np.int32)


def stride_px0(plan: ReadPlan, *, stride_px: int) -> Scale:
    """Return the step between tiles in level-0 pixels, as real numbers."""
    return Scale(stride_px * plan.px0_per_patch_px.x, stride_px * plan.px0_per_patch_px.y)


def _starts(length: int, footprint: float, stride: float) -> NDArray[np.int64]:
    count = max(0, math.floor((length - footprint) / stride) + 2)
    starts = np.rint(np.arange(count) * stride).astype(np.int64)
    return np.asarray(starts[starts + footprint <= length + 1e-6])


def _moved(starts: NDArray[np.int32], by_px0: int, *, low: int, high: int) -> NDArray[np.int32]:
    """Move the starts of tiles along one axis, each as far as the limits allow (imported tiles may lie beyond them)."""
    if not len(starts):
        return starts
    moved = np.clip(starts + by_px0, min(low, int(starts.min())), max(high, int(starts.max())))
    return np.asarray(moved, np.int32)


def geometry_mismatches(index: TileIndex) -> Iterator[str]:
    """Yield problems: tiles must lie on the grid, within the slide, in order, once each."""
    advice = "delete it and run `wsi-ips tile`"
    order = np.lexsort((index.x, index.y))
    if not np.array_equal(order, np.arange(len(index))):
        yield f"tiles are not ordered by y, then x; {advice}"
    if len(np.unique(np.stack([index.x, index.y]), axis=1).T) != len(index):
        yield f"a tile is stored twice; {advice}"
    boxes, bounds = index.boxes_px0, index.bounds
    ends = boxes[:, :2] + boxes[:, 2:]
    # The last pixel may be rounded up if the footprint is not a whole number of level-0 pixels.
    outside = (boxes[:, :2] < bounds[:2]).any(1) | (ends > np.add(bounds[:2], bounds[2:]) + 1).any(1)
    if outside.any():
        yield f"{outside.sum()} tiles lie outside the scanned part of the slide; {advice}"
    steps = (boxes[:, :2] - bounds[:2]) / index.stride_px0
    off = (np.abs(steps - np.round(steps)) * index.stride_px0 > 1).any(1)
    if off.any():
        yield f"{off.sum()} tiles lie beside the grid; {advice}"
    for name, values in (("tissue_fraction", index.tissue_fraction), ("tumour_fraction", index.tumour_fraction)):
        if values is not None and len(values) and not (values.min() >= 0 and values.max() <= 1 + 1e-6):
            yield f"{name} is not between 0 and 1; {advice}"
