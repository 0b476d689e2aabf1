"""Files of CLAM and TRIDENT, read and written, and those of WSInfer and AtlasPatch, which are read only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import TileIndexError
from wsi_ips.geometry import Scale, Size
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.interop.tile_formats import (
    IDENTITY,
    Attributes,
    ForeignTiles,
    ToolFormat,
    refusal,
    square_side,
    whole_corners,
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
        """See :class:`ToolFormat`; CLAM has no file for a slide without tiles; one of an earlier export is deleted."""
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


# TRIDENT's steps: a slide below this many µm/px has this magnification
MAGNIFICATIONS = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))
ROUNDING_PX0 = 0.5
# Relative rounding of a tile's size: level sizes are whole, so downsamples of small slides are this far from whole
ROUNDING = 5e-3


class Trident(ToolFormat):
    """TRIDENT: tiles at a magnification."""

    def read(self, stated: Attributes, coords: NDArray[Any]) -> ForeignTiles:
        """See :class:`ToolFormat`."""
        side = stated.number("patch_size_level0")
        size = [stated.whole(name, 0, least=0) for name in ("level0_width", "level0_height")]
        stated.whole("overlap", 0, least=None)
        return ForeignTiles(
            "trident",
            whole_corners(stated.path, coords, 2),
            patch_px=stated.whole("patch_size"),
            footprint_px0=Scale(side, side),
            size_px0=Size(*size) if all(size) else None,
            magnification=(stated.number("level0_magnification"), stated.number("target_magnification")),
            identity=stated.text(IDENTITY),
        )

    def write_tiles(self, folder: Path, index: TileIndex, name: str) -> Path:
        """See :class:`ToolFormat`; a slide without tiles has a file without coordinates."""
        square_side(index)
        plan, side = index.plan, index.plan.patch_size.width
        level0, target = magnification_step(index.mpp.x), magnification_step(plan.effective_mpp.x)
        footprint = plan.footprint_px0
        if level0 is None or target is None:
            raise refusal(index, "TRIDENT has no magnification for 2.4 µm/px and coarser")
        stated = side * level0 / target
        if any(abs(f - stated) > ROUNDING_PX0 + ROUNDING * stated for f in footprint):
            raise refusal(
                index,
                f"TRIDENT counts in magnifications: {side} px at {target}x of a slide of {level0}x would be "
                f"{stated:g} level-0 px, these tiles are {footprint.x:g}; tile at another `tiles.mpp`",
            )
        overlap = side - index.stride_px
        if overlap < 0:
            raise refusal(index, "TRIDENT supports overlaps of tiles, but no gaps between them")
        run = f"{target}x_{side}px_{overlap}px_overlap"
        attributes = {
            "level0_height": np.int64(index.size_px0.height),
            "level0_magnification": np.int64(level0),
            "level0_width": np.int64(index.size_px0.width),
            "name": name,
            "overlap": np.int64(overlap),
            "patch_size": np.int64(side),
            "patch_size_level0": np.int64(stated) if stated == int(stated) else np.float64(stated),
            "savetodir": run,
            "target_magnification": np.int64(target),
        }
        return write_coordinates(folder / run / "patches" / f"{name}_patches.h5", index, attributes)

    def write_features(
        self, folder: Path, index: TileIndex, values: NDArray[np.floating], *, name: str, encoder: str
    ) -> Path:
        """See :class:`ToolFormat`."""
        tiles = self.write_tiles(folder, index, name)
        path = tiles.parent.parent / f"features_{encoder}" / f"{name}.h5"
        with h5py.File(tiles, "r") as file:
            coords, placed = file["coords"][()], dict(file["coords"].attrs)
        said = {"encoder": encoder, "name": name, "savetodir": path.parent.relative_to(folder).as_posix()}
        return write_feature_table(path, values, coords, feature_attributes=said, coord_attributes=placed)


def magnification_step(mpp: float) -> int | None:
    """Return TRIDENT's magnification of a scale in µm/px, None where it has none (2.4 µm/px and coarser).

    >>> magnification_step(0.2431), magnification_step(0.499), magnification_step(2.5)
    (40, 20, None)
    """
    return next((step for limit, step in MAGNIFICATIONS if mpp < limit), None)


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
