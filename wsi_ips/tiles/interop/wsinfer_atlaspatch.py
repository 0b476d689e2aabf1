"""Files of WSInfer and AtlasPatch, which are read but not written."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import TileIndexError
from wsi_ips.geometry import Scale
from wsi_ips.tiles.interop.coordinate_files import Attributes, whole_corners
from wsi_ips.tiles.interop.tile_formats import ForeignTiles, ToolFormat


class WSInfer(ToolFormat):
    """WSInfer: the side on level 0 and the µm per patch pixel."""

    def read(self, stated: Attributes, coords: NDArray[Any]) -> ForeignTiles:
        """See :class:`ToolFormat`."""
        if stated.whole("patch_level", 0, least=0):
            raise stated.wrong("patch_level", "WSInfer counts in pixels of level 0")
        side = stated.number("patch_size")
        return ForeignTiles(
            "wsinfer",
            whole_corners(stated.path, coords, 2),
            patch_px=None,
            footprint_px0=Scale(side, side),
            spacing_mpp=stated.number("patch_spacing_um_px"),
        )


class AtlasPatch(ToolFormat):
    """AtlasPatch: columns x, y, width and height to read, level; all tiles of a slide are read alike."""

    def read(self, stated: Attributes, coords: NDArray[Any]) -> ForeignTiles:
        """See :class:`ToolFormat`."""
        side = stated.number("patch_size_level0")
        corners = whole_corners(stated.path, coords[:, :2], 2)
        ways = np.unique(whole_corners(stated.path, coords[:, 2:], 3), axis=0)
        if len(ways) > 1:
            raise TileIndexError(
                f"{stated.path}: tiles of different size or level: {ways[:3].tolist()}; one is expected"
            )
        width, height, level = ways[0].tolist() if len(ways) else (None, None, None)
        if width != height:
            raise TileIndexError(f"{stated.path}: tiles of {width} x {height} px; only square ones can be used")
        return ForeignTiles(
            "atlaspatch",
            corners,
            patch_px=stated.whole("patch_size"),
            footprint_px0=Scale(side, side),
            level=level,
            read_px=width,
        )
