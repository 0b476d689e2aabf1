"""Score maps as a pyramidal OME-TIFF of real numbers: one pixel per cell of the tile grid.

Channels are the maps, float32. Pixels without a tile are NaN. A coarser pixel is the mean of the known ones of the four
below it. The image is padded with NaN on its right and lower edge, so that every level is exactly half the size of the
level before. PhysicalSize is a cell in µm; PositionX and PositionY of a plane are the top-left corner of the image in
µm from the corner of the full slide's level 0.
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
from wsi_ips.results.handoff_package import MOST_VALUE_OFF, PackageContent, PackageFile, largest, require_agreement
from wsi_ips.results.overlay import RESEARCH
from wsi_ips.results.score_raster import ScoreMaps, summed

TILE_PX = 256
MOST_SHRUNK = 16  # downsample of the coarsest level at most
CORNER_PX0 = 1.01  # corners of tiles are rounded to whole level-0 pixels


def write_maps(folder: Path, content: PackageContent) -> list[PackageFile]:
    """Write ``<slide_id>_maps.ome.tif`` and check it."""
    path = folder / f"{content.maps.slide_id}_maps.ome.tif"
    write_ome_tiff(path, content.maps)
    return [PackageFile(path, "maps as numbers, one pixel per cell", check_maps(path, content.maps))]


def check_maps(path: Path, maps: ScoreMaps) -> dict[str, Any]:
    """Compare the score at every tile, found by the file's own scale and position; raises HandoffError.

    Returns the number of tiles, the largest offset of a tile's first cell and the largest difference of a score. Where
    tiles overlap, their common mean is compared.
    """
    with tifffile.TiffFile(path) as tiff:
        values = tiff.series[0].levels[0].asarray()
        pixels: dict[str, Any] = tifffile.xml2dict(tiff.ome_metadata or "")["OME"]["Image"]["Pixels"]
    planes = pixels["Plane"] if isinstance(pixels["Plane"], list) else [pixels["Plane"]]
    offset = difference = 0.0
    for values_of, plane, (name, raster) in zip(
        values.reshape(-1, *values.shape[-2:]), planes, maps.rasters.items(), strict=True
    ):
        column, off_x = _cells(maps.x, pixels["PhysicalSizeX"] / maps.mpp.x, plane["PositionX"] / maps.mpp.x)
        row, off_y = _cells(maps.y, pixels["PhysicalSizeY"] / maps.mpp.y, plane["PositionY"] / maps.mpp.y)
        overlap = max(maps.footprint_px0.over(maps.stride_px0)) > 1 + 1e-6
        wanted = raster.values[row, column] if overlap else maps.scores[name]
        difference = max(difference, largest(values_of[row, column] - wanted))
        offset = max(offset, largest(off_x), largest(off_y))
    found = {"tiles": len(maps), "largest_offset_px0": offset, "largest_difference": difference}
    allowed = max(CORNER_PX0, min(maps.footprint_px0) / 2)
    return require_agreement(path, maps, found, agrees=offset <= allowed and difference <= MOST_VALUE_OFF)


def write_ome_tiff(path: Path, maps: ScoreMaps) -> None:
    """Write all maps of a slide as an image that opens in QuPath, Fiji, napari and TiffSlide."""
    levels = pyramid(np.stack([raster.values for raster in maps.rasters.values()]))
    common: dict[str, Any] = {"tile": (TILE_PX, TILE_PX), "photometric": "minisblack", "compression": "zlib"}
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True, ome=True) as tiff:
        for number, level in enumerate(levels):
            per_cm = [1e4 / (cell_um * 2**number) for cell_um in maps.stride_px0.times(maps.mpp)]
            scale: dict[str, Any] = {"resolution": per_cm, "resolutionunit": "CENTIMETER"}
            if number:
                tiff.write(level, subfiletype=1, **scale, **common)
            else:
                tiff.write(level, subifds=len(levels) - 1, metadata=_metadata(maps), **scale, **common)


def pyramid(values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return levels, each half the size of the one before, shape (channels, rows, columns), down to 1/16 or a cell."""
    halvings = min(int(math.log2(MOST_SHRUNK)), math.ceil(math.log2(max(values.shape[1:]))))
    block = 2**halvings
    filling = [(0, 0), *((0, -side % block) for side in values.shape[1:])]
    levels = [np.pad(values, filling, constant_values=np.nan)]
    known = np.isfinite(levels[0]).astype(np.float32)
    total = np.nan_to_num(levels[0])
    for _ in range(halvings):
        total, known = summed(total), summed(known)
        levels.append(np.divide(total, known, out=np.full_like(total, np.nan), where=known > 0))
    return levels


def _metadata(maps: ScoreMaps) -> dict[str, Any]:
    """Return OME elements; facts that OME has no element for go into the description as JSON."""
    channels, cell = len(maps.scores), maps.stride_px0.times(maps.mpp)
    described = {
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
    }
    return {
        "axes": "CYX",
        "Name": f"{maps.slide_id} maps",
        "Description": json.dumps(described, ensure_ascii=False),
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


def _cells(start: NDArray[np.integer], cell: float, origin: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the first cell of each tile and its offset; looked up at the cell's centre because corners are rounded."""
    at = np.floor((start + cell / 2 - origin) / cell).astype(np.intp)
    return at, origin + at * cell - start
