"""Files of CLAM: ``patches/NAME.h5`` (coordinates) and ``h5_files/NAME.h5`` (features)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.geometry import Scale, Size
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.interop.coordinate_files import Attributes, whole_corners
from wsi_ips.tiles.interop.tile_formats import (
    IDENTITY,
    ForeignTiles,
    ToolFormat,
    refusal,
    square_side,
    write_coordinates,
    write_feature_table,
)

FOLDER = "patches"


class Clam(ToolFormat):
    """CLAM: tiles of one whole level of OpenSlide."""

    def read(self, stated: Attributes, coords: NDArray[Any]) -> ForeignTiles:
        """See :class:`ToolFormat`."""
        read_px, downsample = stated.whole("patch_size"), stated.pair("downsample")
        width, height = stated.pair("level_dim") if "level_dim" in stated.values else (0, 0)
        shrink = stated.whole("custom_downsample", 1)
        if read_px % shrink:
            raise stated.wrong("custom_downsample", f"does not divide patch_size = {read_px}")
        return ForeignTiles(
            "clam",
            whole_corners(stated.path, coords, 2),
            patch_px=read_px // shrink,
            footprint_px0=Scale(read_px * downsample.x, read_px * downsample.y),
            level=stated.whole("patch_level", least=0),
            read_px=read_px,
            level_size=Size(round(width), round(height)) if width else None,
            downsample=downsample,
            identity=stated.text(IDENTITY),
        )

    def write_tiles(self, folder: Path, index: TileIndex, name: str) -> Path | None:
        """See :class:`ToolFormat`; CLAM has no file for a slide without tiles, and one of an earlier export goes."""
        plan, path = index.plan, folder / FOLDER / f"{name}.h5"
        if plan.resamples:
            raise refusal(
                index,
                f"CLAM reads whole levels, and {plan.effective_mpp.x:.4g} µm/px is not a level of this slide "
                f"(level {plan.level} is averaged from {plan.read_size.width} to {plan.patch_size.width} px); tile at "
                "the scale of a level, or export as trident",
            )
        if plan.level and index.reader != "openslide":
            raise refusal(index, f"CLAM counts the levels of OpenSlide, but {index.reader} opened this slide")
        side = square_side(index)
        if not len(index):
            path.unlink(missing_ok=True)
            return None
        size = [round(s / d) for s, d in zip(index.size_px0, plan.downsample, strict=True)]
        level_dim = np.array(size, np.int64)
        attributes = {
            "downsample": np.array(plan.downsample, np.float64),
            "downsampled_level_dim": level_dim,
            "level_dim": level_dim,
            "name": name,
            "patch_level": np.int64(plan.level),
            "patch_size": np.int64(side),
            "save_path": FOLDER,
        }
        return write_coordinates(path, index, attributes)

    def write_features(
        self,
        folder: Path,
        index: TileIndex,
        values: NDArray[np.floating],
        *,
        name: str,
        encoder: str,  # noqa: ARG002 - CLAM does not store it
    ) -> Path | None:
        """See :class:`ToolFormat`; CLAM's files of features have no attributes."""
        if self.write_tiles(folder, index, name) is None:
            return None
        coords = np.stack([index.x, index.y], axis=1).astype(np.int32)
        path = folder / "h5_files" / f"{name}.h5"
        return write_feature_table(path, values, coords, feature_attributes={}, coord_attributes={})
