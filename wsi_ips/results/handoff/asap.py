"""Lesions as ASAP XML, as CAMELYON publishes its annotations.

A polygon of ASAP has no holes: the region is the union of group ``Tumor`` minus the union of group ``Exclusion``. What
lies within a hole and is a lesion itself must not be excluded, so exclusions are cut around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import shapely
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations.asap import Ring, write_rings
from wsi_ips.annotations.geojson import polygons_of
from wsi_ips.results.handoff.lesions import Lesion

TUMOUR, HOLE = "Tumor", "Exclusion"


def write_lesions(path: Path, lesions: Sequence[Lesion]) -> None:
    """Write the outlines of all lesions, level-0 pixels of the full slide; none is a valid file."""
    rings = [
        _ring(f"Lesion {lesion.number}, highest score {lesion.highest:.3f}", TUMOUR, polygon)
        for lesion in lesions
        for polygon in polygons_of(lesion.region)
    ]
    rings += [_ring(f"Not lesion {n}", HOLE, piece) for n, piece in enumerate(_excluded(lesions), 1)]
    write_rings(path, rings, groups=[TUMOUR, HOLE])


def _excluded(lesions: Sequence[Lesion]) -> list[shapely.Polygon]:
    """Holes of lesions without the lesions within them, as polygons without holes."""
    regions = [lesion.region for lesion in lesions]
    holes = [shapely.Polygon(hole) for region in regions for part in polygons_of(region) for hole in part.interiors]
    if not holes:
        return []
    outside = shapely.difference(shapely.union_all(holes), shapely.union_all(regions))
    return [piece for part in polygons_of(outside) for piece in _without_holes(part)]


def _without_holes(polygon: shapely.Polygon) -> list[shapely.Polygon]:
    """A polygon cut through its holes, top to bottom, until no piece has one."""
    if not polygon.interiors:
        return [polygon]
    left, top, right, bottom = polygon.bounds
    across = polygon.interiors[0].centroid.x
    halves: list[BaseGeometry] = [shapely.box(left, top, across, bottom), shapely.box(across, top, right, bottom)]
    pieces = shapely.intersection(polygon, halves).tolist()
    return [whole for piece in pieces for part in polygons_of(piece) for whole in _without_holes(part)]


def _ring(name: str, group: str, polygon: shapely.Polygon) -> Ring:
    return Ring(name, group, shapely.get_coordinates(polygon.exterior)[:-1])
