"""Self-test of a package: files are read back from the disk and laid beside the scores they were made from.

Where the positions or values found differ by more than the formats allow, the package is not handed over.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import tifffile
from numpy.typing import NDArray
from shapely import affinity
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import read_asap
from wsi_ips.errors import HandoffError
from wsi_ips.results.handoff.lesions import Lesion
from wsi_ips.results.handoff.maps import ScoreMaps
from wsi_ips.results.handoff.qupath import MOST_LESIONS

Floats = NDArray[np.float64]
MOST_VALUE_OFF = 1e-5
"""Six digits are written."""
CORNER_PX0 = 1.01
"""Corners of tiles are rounded to whole level-0 pixels."""
MOST_AREA_OFF = 1e-3
"""Share of the lesions' area by which ASAP's outlines may differ: coordinates have two digits."""


def check_ome_tiff(path: Path, maps: ScoreMaps) -> dict[str, Any]:
    """Scores at the middle of every tile, found by the file's own scale and position.

    Returns
    -------
    dict
        ``tiles`` compared, ``largest_offset_px0`` of a tile's first cell, ``largest_difference`` of a score. Where
        tiles overlap, their common mean is what is compared.

    Raises
    ------
    HandoffError
        Something is off.
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
        difference = max(difference, _largest(values_of[row, column] - wanted))
        offset = max(offset, _largest(off_x), _largest(off_y))
    found = {"tiles": len(maps), "largest_offset_px0": offset, "largest_difference": difference}
    allowed = max(CORNER_PX0, min(maps.footprint_px0) / 2)
    return _passed(path, maps, found, offset <= allowed and difference <= MOST_VALUE_OFF)


def check_geojson(path: Path, maps: ScoreMaps, lesions: Sequence[Lesion], tiles: NDArray[np.integer]) -> dict[str, Any]:
    """Corners and scores of all tiles of the file, and the outlines of its lesions.

    Returns
    -------
    dict
        ``tiles`` and ``lesions`` compared, ``largest_offset_px0`` of a corner, ``largest_difference`` of a score.

    Raises
    ------
    HandoffError
        Something is off, is missing, or an outline leaves the true one by more than a quarter of a tile.
    """
    features = json.loads(gzip.decompress(path.read_bytes()))["features"]
    shown = [f for f in features if f["properties"]["objectType"] == "tile"]
    rows = np.array([f["properties"]["measurements"]["tile number"] for f in shown], int)
    boxes = np.array([f["geometry"]["coordinates"][0] for f in shown], float).reshape(-1, 5, 2)
    wanted = np.stack([maps.x, maps.y], axis=1)[rows] - np.array(maps.bounds_origin)
    far = wanted + np.array(maps.footprint_px0)
    offset = max(_largest(boxes[:, 0] - wanted), _largest(boxes[:, 2] - far))
    measured = [f["properties"]["measurements"] for f in shown]
    difference = max(
        _largest(np.array([m[f"{name} (tile)"] for m in measured], float) - values[rows])
        for name, values in maps.scores.items()
    )
    drawn = [f for f in features if f["properties"]["objectType"] == "annotation"]
    outlines = [f["geometry"] for f in drawn if f["properties"]["classification"]["name"] == maps.class_name]
    near = _all_near(outlines, lesions[:MOST_LESIONS], maps)
    complete = set(rows.tolist()) == set(tiles.tolist())
    found = {
        "tiles": len(rows),
        "lesions": len(outlines),
        "largest_offset_px0": offset,
        "largest_difference": difference,
    }
    return _passed(path, maps, found, near and complete and offset <= 0.02 and difference <= MOST_VALUE_OFF)


def check_asap(path: Path, maps: ScoreMaps, lesions: Sequence[Lesion]) -> dict[str, Any]:
    """The region of the file against that of the lesions.

    Returns
    -------
    dict
        ``lesions`` compared, ``area_off``: share of their area by which the regions differ.

    Raises
    ------
    HandoffError
        More than rounding.
    """
    wanted = shapely.union_all([lesion.region for lesion in lesions])
    differing = shapely.symmetric_difference(read_asap(path).tumour, wanted).area
    off = float(differing / wanted.area) if lesions else float(differing)
    return _passed(path, maps, {"lesions": len(lesions), "area_off": off}, off <= MOST_AREA_OFF)


def _all_near(outlines: Sequence[dict[str, Any]], lesions: Sequence[Lesion], maps: ScoreMaps) -> bool:
    """Whether each outline lies within a quarter of a tile of its lesion, and the other way round."""
    if len(outlines) != len(lesions):
        return False
    found = [affinity.translate(shapely.geometry.shape(outline), *maps.bounds_origin) for outline in outlines]
    return all(
        _within(a, b, maps.quarter_tile_px0)
        for lesion, outline in zip(lesions, found, strict=True)
        for a, b in ((lesion.region, outline), (outline, lesion.region))
    )


def _within(inner: BaseGeometry, outer: BaseGeometry, distance: float) -> bool:
    """Whether no point of one region is further than a distance from the other, but for rounding."""
    rest = shapely.difference(inner, outer)
    return bool(rest.area == 0 or shapely.covers(shapely.buffer(outer, distance * 1.1, join_style="mitre"), rest))


def _cells(start: NDArray[np.integer], cell: float, origin: float) -> tuple[NDArray[np.intp], Floats]:
    """Cell that a tile begins with, and how far from it; looked for in its middle, for corners are rounded."""
    at = np.floor((start + cell / 2 - origin) / cell).astype(np.intp)
    return at, origin + at * cell - start


def _largest(values: NDArray[np.floating]) -> float:
    return float(np.abs(values).max(initial=0.0)) if np.isfinite(values).all() else float("inf")


def _passed(path: Path, maps: ScoreMaps, found: dict[str, Any], passed: bool) -> dict[str, Any]:
    if not passed:
        told = ", ".join(f"{name} {value}" for name, value in found.items())
        raise HandoffError(
            f"slide {maps.slide_id}: {path.name} does not lie on the slide as its scores do ({told}); it is not handed "
            "over: report this with the recipe"
        )
    return {name: round(value, 9) if isinstance(value, float) else value for name, value in found.items()}
