"""Files of CLAM, TRIDENT, WSInfer and AtlasPatch, made by hand to the letter of their formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

CORNERS = [[64, 32], [320, 32], [64, 288], [576, 288]]
"""Tiles of 256 level-0 px, as they stand in the files: by column in some tools, so the order is not ours."""


def write(path: Path, coords: Any, dtype: str, attributes: dict[str, Any], *, on: str = "coords") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("coords", data=np.array(coords, dtype), maxshape=(None, np.shape(coords)[1]))
        target = dataset if on == "coords" else file
        for name, value in attributes.items():
            target.attrs[name] = value
    return path


def clam(path: Path, coords: Any = CORNERS, **changes: Any) -> Path:
    attributes = {
        "patch_size": np.int64(256),
        "patch_level": np.int64(0),
        "downsample": np.array([1.0, 1.0]),
        "downsampled_level_dim": np.array([1031, 773]),
        "level_dim": np.array([1031, 773]),
        "name": "ugly",
        "save_path": "patches",
    }
    return write(path, coords, "int64", attributes | changes)


def trident(path: Path, coords: Any = CORNERS, *, batch: bool = False, **changes: Any) -> Path:
    """``batch`` writes the types of TRIDENT's batch runs."""
    real = np.float64 if batch else np.int64
    attributes = {
        "patch_size": np.int64(128),
        "patch_size_level0": real(256),
        "level0_magnification": np.int64(40),
        "target_magnification": real(20),
        "overlap": np.int64(0),
        "name": "ugly",
        "savetodir": "20x_128px_0px_overlap",
        "level0_width": np.int64(1031),
        "level0_height": np.int64(773),
    }
    return write(path, coords, "float64" if batch else "int64", attributes | changes)


def wsinfer(path: Path, coords: Any = CORNERS, **changes: Any) -> Path:
    attributes = {"patch_size": 256, "patch_level": 0, "patch_spacing_um_px": 0.5}
    return write(path, coords, "int64", attributes | changes)


def atlaspatch(path: Path, coords: Any = CORNERS, **changes: Any) -> Path:
    rows = [[x, y, 256, 256, 0] for x, y in coords]
    attributes = {"patch_size": 128, "patch_size_level0": 256, "target_magnification": 20}
    return write(path, rows, "int32", attributes | changes, on="file")
