"""Lesions as ASAP XML, in the form in which CAMELYON publishes its annotations.

Polygons of ASAP have no holes: the region is the union of group ``Tumor`` minus the union of group ``Exclusion``. A
lesion inside a hole of another must not be excluded, so exclusions are cut around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shapely
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import Ring, polygons_of, read_asap, write_rings
from wsi_ips.results.handoff.content import PackageContent, PackageFile, require_agreement
from wsi_ips.results.handoff.lesions import Lesion

TUMOUR, HOLE = "Tumor", "Exclusion"
MOST_AREA_OFF = 1e-3
"""Largest share of the lesions' area by which the file may differ: coordinates have two digits."""


def write_lesions(folder: Path, content: PackageContent) -> list[PackageFile]:
    """Write ``<slide_id>_lesions.xml``."""
    path = folder / f"{content.maps.slide_id}_lesions.xml"
    write_outlines(path, content.lesions)
    return [PackageFile(path, "outlines of all lesions for ASAP")]


def check_lesions(path: Path, content: PackageContent) -> dict[str, Any]:
    """Compare the region in the file with the region of the lesions.

    Returns
    -------
    dict
        ``lesions`` compared, ``area_off``: share of their area by which the regions differ.

    Raises
    ------
    HandoffError
        They differ by more than rounding.
    """
    wanted = shapely.union_all([lesion.region for lesion in content.lesions])
    differing = shapely.symmetric_difference(read_asap(path).tumour, wanted).area
    off = float(differing / wanted.area) if content.lesions else float(differing)
    found = {"lesions": len(content.lesions), "area_off": off}
    return require_agreement(path, content.maps, found, agrees=off <= MOST_AREA_OFF)


def write_outlines(path: Path, lesions: Sequence[Lesion]) -> None:
    """Write the outlines of lesions, level-0 pixels of the full slide; a file without lesions is valid."""
    rings = [
        _ring(f"Lesion {lesion.number}, highest score {lesion.highest:.3f}", TUMOUR, polygon)
        for lesion in lesions
        for polygon in polygons_of(lesion.region)
    ]
    rings += [_ring(f"Not lesion {n}", HOLE, piece) for n, piece in enumerate(_excluded(lesions), 1)]
    write_rings(path, rings, groups=[TUMOUR, HOLE])


def _excluded(lesions: Sequence[Lesion]) -> list[shapely.Polygon]:
    """Return the holes of lesions minus the lesions inside them, as polygons without holes."""
    regions = [lesion.region for lesion in lesions]
    holes = [shapely.Polygon(hole) for region in regions for part in polygons_of(region) for hole in part.interiors]
    if not holes:
        return []
    outside = shapely.difference(shapely.union_all(holes), shapely.union_all(regions))
    return [piece for part in polygons_of(outside) for piece in _without_holes(part)]


def _without_holes(polygon: shapely.Polygon) -> list[shapely.Polygon]:
    """Cut a polygon from top to bottom through its holes until no piece has one."""
    if not polygon.interiors:
        return [polygon]
    left, top, right, bottom = polygon.bounds
    across = polygon.interiors[0].centroid.x
    halves: list[BaseGeometry] = [shapely.box(left, top, across, bottom), shapely.box(across, top, right, bottom)]
    pieces = shapely.intersection(polygon, halves).tolist()
    return [whole for piece in pieces for part in polygons_of(piece) for whole in _without_holes(part)]


def _ring(name: str, group: str, polygon: shapely.Polygon) -> Ring:
    return Ring(name, group, shapely.get_coordinates(polygon.exterior)[:-1])
