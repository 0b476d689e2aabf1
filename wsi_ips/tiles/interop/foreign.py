"""What a coordinate file of another tool says, in one form for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsi_ips.geometry import Scale, Size

ForeignFormat = Literal["clam", "trident", "wsinfer", "atlaspatch"]

MAGNIFICATIONS = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))
"""TRIDENT's steps: below so many µm/px a slide counts as so many x."""
MPP_AT_1X = 10.0
"""µm/px that a magnification of 1 stands for: 20x is 0.5 µm/px."""


@dataclass(frozen=True)
class ForeignTiles:
    """Tiles of one slide as another tool stored them; what its format does not say is None.

    Attributes
    ----------
    format
        Whose file it is.
    corners_px0
        Top-left corners (x, y) in level-0 pixels, int64, shape (N, 2), in the order of the file.
    patch_px
        Side of a patch as the tool hands it to its network, px; None where only the slide's scale tells.
    footprint_px0
        Width and height of a tile in level-0 pixels.
    level, read_px
        Level of OpenSlide that is read, and the side read there, px.
    level_size, downsample
        Size of that level and level-0 pixels per pixel of it, as the file states them.
    size_px0
        Size of the slide's level 0.
    spacing_mpp
        µm per patch pixel.
    magnification
        Of level 0 and of the patches, in the tool's own steps.
    overlap_px
        Overlap of neighbours, patch px.
    name
        The slide's name, without ending.
    identity
        Content identity of the slide, where this package wrote the file.
    """

    format: ForeignFormat
    corners_px0: NDArray[np.int64]
    patch_px: int | None
    footprint_px0: Scale
    level: int | None = None
    read_px: int | None = None
    level_size: Size | None = None
    downsample: Scale | None = None
    size_px0: Size | None = None
    spacing_mpp: float | None = None
    magnification: tuple[float, float] | None = None
    overlap_px: int | None = None
    name: str | None = None
    identity: str | None = None


def magnification_step(mpp: float) -> int | None:
    """TRIDENT's magnification of a scale in µm/px, None where it has none (2.4 µm/px and coarser).

    >>> magnification_step(0.2431), magnification_step(0.499), magnification_step(2.5)
    (40, 20, None)
    """
    return next((step for limit, step in MAGNIFICATIONS if mpp < limit), None)
