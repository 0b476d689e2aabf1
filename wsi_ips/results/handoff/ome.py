"""Maps as a pyramidal OME-TIFF of real numbers: one pixel per cell of the tile grid.

Channels are the maps, float32. NaN stands where there is no tile: no score is made up there. A coarser pixel is the
mean of what is known of the four below it. The image is filled up with NaN on its right and lower edge, so that every
level is exactly half of the one before. PhysicalSize is a cell in µm; PositionX and PositionY of a plane are the upper
left corner of the image in µm from the corner of the full slide's level 0.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_ips.provenance import atomic_path
from wsi_ips.results.frame import RESEARCH
from wsi_ips.results.handoff.maps import ScoreMaps

TILE_PX = 256
MOST_SHRUNK = 16
"""Coarsest level against the finest."""


def write_ome_tiff(path: Path, maps: ScoreMaps) -> None:
    """Write all maps of a slide; opens as an image of its own in QuPath, Fiji, napari, TiffSlide.

    OpenSlide reads its size and scale only: it does not decode real numbers.
    """
    levels = pyramid(np.stack([raster.values for raster in maps.rasters.values()]))
    common: dict[str, Any] = {"tile": (TILE_PX, TILE_PX), "photometric": "minisblack", "compression": "zlib"}
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True, ome=True) as tiff:
        for number, level in enumerate(levels):
            cell = (maps.cell_um.x * 2**number, maps.cell_um.y * 2**number)
            scale: dict[str, Any] = {"resolution": (1e4 / cell[0], 1e4 / cell[1]), "resolutionunit": "CENTIMETER"}
            if number:
                tiff.write(level, subfiletype=1, **scale, **common)
            else:
                tiff.write(level, subifds=len(levels) - 1, metadata=_metadata(maps), **scale, **common)


def pyramid(values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Levels of half the size each, shape (channels, rows, columns), down to a sixteenth or to one cell.

    A coarser pixel is the mean of the known ones below it, NaN where none is.
    """
    halvings = min(int(math.log2(MOST_SHRUNK)), math.ceil(math.log2(max(values.shape[1:]))))
    block = 2**halvings
    filling = [(0, 0), *((0, -side % block) for side in values.shape[1:])]
    levels = [np.pad(values, filling, constant_values=np.nan)]
    known = np.isfinite(levels[0]).astype(np.float32)
    total = np.nan_to_num(levels[0])
    for _ in range(halvings):
        total, known = _summed(total), _summed(known)
        levels.append(np.divide(total, known, out=np.full_like(total, np.nan), where=known > 0))
    return levels


def _summed(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of squares of two by two."""
    channels, rows, columns = values.shape
    return np.asarray(values.reshape(channels, rows // 2, 2, columns // 2, 2).sum(axis=(2, 4)), np.float32)


def _metadata(maps: ScoreMaps) -> dict[str, Any]:
    """OME elements; the description holds what the model has no element for, as JSON."""
    channels, cell = len(maps.scores), maps.cell_um
    return {
        "axes": "CYX",
        "Name": f"{maps.slide_id} maps",
        "Description": json.dumps(
            {
                "note": RESEARCH,
                "slide_id": maps.slide_id,
                "class": maps.class_name,
                "slide_probability": maps.probability,
                "model_id": maps.model_id,
                "fingerprint": maps.fingerprint,
                "no_data": "NaN: no tile",
                "origin_px0": [maps.grid.x, maps.grid.y],
                "cell_px0": list(maps.stride_px0),
                "slide_mpp": list(maps.mpp),
                "bounds_px0": list(maps.bounds),
            },
            ensure_ascii=False,
        ),
        "PhysicalSizeX": cell.x,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": cell.y,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": list(maps.scores)},
        "Plane": {
            "PositionX": [maps.grid.x * maps.mpp.x] * channels,
            "PositionXUnit": ["µm"] * channels,
            "PositionY": [maps.grid.y * maps.mpp.y] * channels,
            "PositionYUnit": ["µm"] * channels,
        },
    }
