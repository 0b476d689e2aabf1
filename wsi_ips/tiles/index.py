"""The tile index: where the tiles of one slide lie and how their pixels are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import tumour_fraction
from wsi_ips.geometry import Box, ReadPlan, Scale, Size, plan_read
from wsi_ips.slides import SlideInfo
from wsi_ips.tiles.grid import stride_px0, tile_grid
from wsi_ips.tissue import TissueMask

SCHEMA_VERSION = 1
MARGIN = 0.06
"""Share of the tiled area that maps show around it."""
COLUMNS = {
    "x": np.int32,
    "y": np.int32,
    "tissue_fraction": np.float32,
    "tumour_fraction": np.float32,
    "flags": np.uint8,
}
"""Stored columns; ``tumour_fraction`` only where the slide is annotated."""


@dataclass(frozen=True)
class TileIndex:
    """Tiles of one slide; row i is tile i, ordered by y, then x.

    Attributes
    ----------
    slide_id
        Identity in the manifest.
    x, y
        Top-left corners in level-0 pixels of the full slide, int32, shape (N,).
    tissue_fraction
        Share of tissue, 0-1, float32, shape (N,).
    tumour_fraction
        Share of annotated tumour, 0-1, float32, shape (N,); None where the slide has no annotation.
    flags
        Quality flags, uint8, shape (N,): bits of :data:`wsi_ips.tissue.BITS` (1 pen, 2 blur, 4 fold, 8 bubble); 0 is
        none.
    size_px0
        Size of level 0.
    bounds
        Scanned part of the slide, level-0 pixels.
    mpp, mpp_source
        µm per level-0 pixel, and where it comes from.
    reader
        Which reader the plan's level number belongs to.
    plan
        How a patch is read.
    stride_px
        Step between tiles in patch pixels.
    tissue_method
        How the tissue was found.
    slide_identity
        Content identity of the slide's file.
    fingerprint
        Of everything the index was made from.
    look
        What the slide looks like from afar, see :mod:`wsi_ips.tissue.look`; empty where nothing can be recognised.
    """

    slide_id: str
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    tissue_fraction: NDArray[np.float32]
    tumour_fraction: NDArray[np.float32] | None
    flags: NDArray[np.uint8]
    size_px0: Size
    bounds: Box
    mpp: Scale
    mpp_source: str
    reader: str
    plan: ReadPlan
    stride_px: int
    tissue_method: str
    slide_identity: str
    fingerprint: str
    look: str = ""

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
        """Centres of the tiles in µm from the upper left corner of what was scanned, shape (N, 2)."""
        boxes = self.boxes_px0
        return np.asarray((boxes[:, :2] + boxes[:, 2:] / 2 - self.bounds[:2]) * self.mpp)

    @property
    def grid(self) -> Box:
        """Box whose corner is that of the tile grid: the bounds, or for tiles of another tool the tiles themselves."""
        if not len(self):
            return self.bounds
        stride, corner = self.stride_px0, np.array(self.bounds[:2])
        steps = (np.stack([self.x, self.y], axis=1) - corner) / stride
        if (np.abs(steps - np.rint(steps)) * stride < 1).all():
            return self.bounds
        left, top = int(self.x.min()), int(self.y.min())
        return Box(left, top, self.bounds.right - left, self.bounds.bottom - top)

    @property
    def shown_area(self) -> Box:
        """Box around all tiles with a margin, cut to the slide: the part of it that maps show."""
        width, height = self.plan.footprint_px0
        margin = int(max(np.ptp(self.x) + width, np.ptp(self.y) + height) * MARGIN)
        left, top = max(0, int(self.x.min()) - margin), max(0, int(self.y.min()) - margin)
        right = min(self.size_px0.width, int(self.x.max() + width) + margin)
        bottom = min(self.size_px0.height, int(self.y.max() + height) + margin)
        return Box(left, top, right - left, bottom - top)

    def flagged(self, flags: NDArray[np.uint8], *, exclude: int) -> Self:
        """The index with flags, without the tiles that have one of the bits ``exclude``.

        Parameters
        ----------
        flags
            uint8, shape (N,).
        exclude
            Bits of :data:`wsi_ips.tissue.BITS`.
        """
        keep = (flags & exclude) == 0
        truth = None if self.tumour_fraction is None else self.tumour_fraction[keep]
        return replace(
            self,
            x=self.x[keep],
            y=self.y[keep],
            tissue_fraction=self.tissue_fraction[keep],
            tumour_fraction=truth,
            flags=flags[keep],
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """The stored columns, by name."""
        values = {name: getattr(self, name) for name in COLUMNS}
        return {name: value for name, value in values.items() if value is not None}

    def to_attributes(self) -> dict[str, Any]:
        """Everything but the columns, as plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "slide_id": self.slide_id,
            "tiles": len(self),
            "size_px0": list(self.size_px0),
            "bounds": list(self.bounds),
            "mpp": list(self.mpp),
            "mpp_source": self.mpp_source,
            "reader": self.reader,
            "plan": self.plan.to_dict(),
            "stride_px": self.stride_px,
            "tissue_method": self.tissue_method,
            "slide_identity": self.slide_identity,
            "fingerprint": self.fingerprint,
            "look": self.look,
        }

    @classmethod
    def from_stored(cls, attributes: dict[str, Any], columns: dict[str, NDArray[Any]]) -> Self:
        """Inverse of :meth:`columns` and :meth:`to_attributes`.

        Raises
        ------
        KeyError, TypeError, ValueError
            Something is missing or of another type.
        """
        return cls(
            slide_id=str(attributes["slide_id"]),
            x=columns["x"],
            y=columns["y"],
            tissue_fraction=columns["tissue_fraction"],
            tumour_fraction=columns.get("tumour_fraction"),
            flags=columns["flags"],
            size_px0=Size(*(int(v) for v in attributes["size_px0"])),
            bounds=Box(*(int(v) for v in attributes["bounds"])),
            mpp=Scale(*(float(v) for v in attributes["mpp"])),
            mpp_source=str(attributes["mpp_source"]),
            reader=str(attributes["reader"]),
            plan=ReadPlan.from_dict(attributes["plan"]),
            stride_px=int(attributes["stride_px"]),
            tissue_method=str(attributes["tissue_method"]),
            slide_identity=str(attributes["slide_identity"]),
            fingerprint=str(attributes["fingerprint"]),
            look=str(attributes.get("look", "")),
        )


def boxes_of(corners: NDArray[np.int32], plan: ReadPlan) -> NDArray[np.float64]:
    """Boxes x, y, width, height in level-0 pixels, shape (N, 4), of corners of shape (N, 2)."""
    boxes = np.empty((len(corners), 4))
    boxes[:, :2] = corners
    boxes[:, 2:] = plan.footprint_px0
    return boxes


def build_index(
    info: SlideInfo,
    mask: TissueMask,
    *,
    slide_id: str,
    target_mpp: float,
    patch_px: int,
    stride_px: int,
    min_tissue_fraction: float,
    tumour_region: BaseGeometry | None,
    slide_identity: str,
    fingerprint: str,
) -> TileIndex:
    """Lay the grid over a slide and keep the tiles with enough tissue; none is a valid result.

    Parameters
    ----------
    info
        Header facts of the slide.
    mask
        Its tissue.
    target_mpp
        Scale of the patches, µm/px.
    patch_px, stride_px
        Side of a patch and step between tiles, patch pixels.
    min_tissue_fraction
        Tiles with less are left out; with 0, tiles without any tissue are still left out.
    tumour_region
        Annotated tumour in level-0 pixels; an empty region for a slide known to be negative; None where
        nothing is known.
    slide_identity, fingerprint
        Stored with the index.

    Raises
    ------
    ResolutionError
        The slide has no scale, or its finest level is coarser than the target.
    """
    plan = plan_read(info.pyramid, target_mpp=target_mpp, patch_size=Size(patch_px, patch_px))
    corners = tile_grid(info.bounds, plan, stride_px=stride_px)
    fraction = mask.fraction(boxes_of(corners, plan))
    keep = (fraction >= min_tissue_fraction) & (fraction > 0)
    corners = corners[keep]
    truth = None if tumour_region is None else tumour_fraction(tumour_region, boxes_of(corners, plan))
    return TileIndex(
        slide_id=slide_id,
        x=np.ascontiguousarray(corners[:, 0]),
        y=np.ascontiguousarray(corners[:, 1]),
        tissue_fraction=fraction[keep],
        tumour_fraction=truth,
        flags=np.zeros(len(corners), np.uint8),
        size_px0=info.size_px0,
        bounds=info.bounds,
        mpp=info.pyramid.mpp,
        mpp_source=info.mpp_source,
        reader=info.reader,
        plan=plan,
        stride_px=stride_px,
        tissue_method=mask.method,
        slide_identity=slide_identity,
        fingerprint=fingerprint,
    )
