"""Write a tile index as CLAM and TRIDENT write theirs; what they cannot say is refused, never bent.

Attributes beginning with ``wsi_ips_`` are ours and ignored by their readers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import h5py
import numpy as np

from wsi_ips.errors import TileIndexError
from wsi_ips.provenance import atomic_path
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.interop.foreign import magnification_step
from wsi_ips.tiles.interop.reading import IDENTITY

ExportFormat = Literal["clam", "trident"]
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
CLAM_FOLDER = "patches"
ROUNDING_PX0 = 0.5
ROUNDING = 5e-3
"""Relative; downsamples of small slides are that far from whole numbers, for level sizes are."""


def write_foreign(folder: Path, index: TileIndex, *, kind: ExportFormat, name: str) -> Path | None:
    """Write the tiles of one slide for another tool.

    Parameters
    ----------
    folder
        Where that tool's run is to lie.
    index
        The tiles.
    kind
        ``clam``: ``patches/NAME.h5``; ``trident``: ``20x_256px_0px_overlap/patches/NAME_patches.h5``.
    name
        The slide's file name without its ending, by which the tool finds the slide.

    Returns
    -------
    pathlib.Path or None
        The file; None where there is no tile and CLAM writes no file.

    Raises
    ------
    TileIndexError
        The format cannot say where these tiles lie; the message says why.
    """
    if kind == "clam":
        return _write_clam(folder / CLAM_FOLDER / f"{name}.h5", index, name)
    return _write_trident(folder, index, name)


def _write_clam(path: Path, index: TileIndex, name: str) -> Path | None:
    plan = index.plan
    if plan.resamples:
        raise _refusal(
            index,
            f"CLAM reads whole levels, and {plan.effective_mpp.x:.4g} µm/px is none of this slide (level "
            f"{plan.level} is averaged from {plan.read_size.width} to {plan.patch_size.width} px); tile at the "
            "scale of a level, or export as trident",
        )
    if plan.level and index.reader != "openslide":
        raise _refusal(index, f"CLAM counts the levels of OpenSlide, but {index.reader} opened this slide")
    side = _square(index)
    width, height = (round(s / d) for s, d in zip(index.size_px0, plan.downsample, strict=True))
    if not len(index):
        path.unlink(missing_ok=True)  # that of an earlier export
        return None
    level_dim = np.array([width, height], np.int64)
    attributes = {
        "downsample": np.array(plan.downsample, np.float64),
        "downsampled_level_dim": level_dim,
        "level_dim": level_dim,
        "name": name,
        "patch_level": np.int64(plan.level),
        "patch_size": np.int64(side),
        "save_path": CLAM_FOLDER,
    }
    return _write(path, index, attributes)


def _write_trident(folder: Path, index: TileIndex, name: str) -> Path:
    _square(index)
    plan, side = index.plan, index.plan.patch_size.width
    level0, target = magnification_step(index.mpp.x), magnification_step(plan.effective_mpp.x)
    footprint = plan.footprint_px0
    if level0 is None or target is None:
        raise _refusal(index, "TRIDENT knows no magnification for 2.4 µm/px and coarser")
    stated = side * level0 / target
    if any(abs(f - stated) > ROUNDING_PX0 + ROUNDING * stated for f in footprint):
        raise _refusal(
            index,
            f"TRIDENT counts in magnifications: {side} px at {target}x of a slide of {level0}x would be "
            f"{stated:g} level-0 px, these tiles are {footprint.x:g}; tile at another `tiles.mpp`",
        )
    overlap = side - index.stride_px
    if overlap < 0:
        raise _refusal(index, "TRIDENT knows overlaps of tiles, no gaps between them")
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
    return _write(folder / run / "patches" / f"{name}_patches.h5", index, attributes)


def _write(path: Path, index: TileIndex, attributes: dict[str, Any]) -> Path:
    ours = {
        IDENTITY: index.slide_identity,
        "wsi_ips_fingerprint": index.fingerprint,
        "wsi_ips_mpp": np.array(index.mpp, np.float64),
        "wsi_ips_mpp_source": index.mpp_source,
        "wsi_ips_patch_mpp": np.array(index.plan.effective_mpp, np.float64),
        "wsi_ips_footprint_px0": np.array(index.plan.footprint_px0, np.float64),
    }
    coords = np.stack([index.x, index.y], axis=1).astype(np.int64)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        dataset = file.create_dataset("coords", data=coords, chunks=(1, 2), maxshape=(None, 2))
        for name, value in {**attributes, **ours}.items():
            dataset.attrs[name] = value
    return path


def _square(index: TileIndex) -> int:
    plan = index.plan
    if plan.read_size.width != plan.read_size.height or plan.patch_size.width != plan.patch_size.height:
        raise _refusal(
            index,
            f"its tiles cover {plan.read_size.width} x {plan.read_size.height} px of level {plan.level}, for its scale "
            f"differs between the axes ({index.mpp.x:.4g} and {index.mpp.y:.4g} µm/px), and the format knows "
            "squares only",
        )
    return plan.read_size.width


def _refusal(index: TileIndex, why: str) -> TileIndexError:
    return TileIndexError(f"slide {index.slide_id}: {why}")
