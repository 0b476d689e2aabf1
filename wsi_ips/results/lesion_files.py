"""Lesions as files: outlines as ASAP XML, and a CSV table, per slide and for all slides.

ASAP XML has the form in which CAMELYON publishes its annotations. Its polygons have no holes: the region is the union
of group ``Tumor`` minus the union of group ``Exclusion``. A lesion inside a hole of another must not be excluded, so
exclusions are cut around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shapely
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import Ring, read_asap, write_rings
from wsi_ips.outline_repair import polygons_of
from wsi_ips.provenance import atomic_write_text
from wsi_ips.results.handoff_package import PackageContent, PackageFile, require_agreement
from wsi_ips.results.lesions import Lesion
from wsi_ips.results.score_raster import ScoreMaps
from wsi_ips.tables import table_text

TUMOUR, HOLE = "Tumor", "Exclusion"
MOST_AREA_OFF = 1e-3  # largest share of the lesions' area by which an XML may differ: coordinates have two digits
COLUMNS = (
    *("slide_id", "lesion", "area_mm2", "longest_diameter_mm", "mean_score", "highest_score"),
    *("x_px0", "y_px0", "width_px0", "height_px0", "centroid_x_px0", "centroid_y_px0", "threshold", "model_id"),
)
HEADER = ",".join(COLUMNS) + "\n"


def write_asap(folder: Path, content: PackageContent) -> list[PackageFile]:
    """Write ``<slide_id>_lesions.xml`` and compare its region with that of the lesions."""
    path = folder / f"{content.maps.slide_id}_lesions.xml"
    write_outlines(path, content.lesions)
    return [PackageFile(path, "outlines of all lesions for ASAP", check_outlines(path, content))]


def write_outlines(path: Path, lesions: Sequence[Lesion]) -> None:
    """Write the outlines of lesions, level-0 pixels of the full slide; a file without lesions is valid."""
    rings = [
        _ring(f"Lesion {lesion.number}, highest score {lesion.highest:.3f}", TUMOUR, polygon)
        for lesion in lesions
        for polygon in polygons_of(lesion.region)
    ]
    rings += [_ring(f"Not lesion {n}", HOLE, piece) for n, piece in enumerate(_excluded(lesions), 1)]
    write_rings(path, rings, groups=[TUMOUR, HOLE])


def check_outlines(path: Path, content: PackageContent) -> dict[str, Any]:
    """Return the lesions compared and the share of their area by which the regions differ; raises HandoffError."""
    wanted = shapely.union_all([lesion.region for lesion in content.lesions])
    differing = shapely.symmetric_difference(read_asap(path).tumour, wanted).area
    off = float(differing / wanted.area) if content.lesions else float(differing)
    found = {"lesions": len(content.lesions), "area_off": off}
    return require_agreement(path, content.maps, found, agrees=off <= MOST_AREA_OFF)


def write_table(folder: Path, content: PackageContent) -> list[PackageFile]:
    """Write ``<slide_id>_lesions.csv``."""
    path = _table(folder, content.maps.slide_id)
    atomic_write_text(path, lesion_table(content.maps, content.lesions))
    return [PackageFile(path, "all lesions: size, score, place")]


def join_tables(packages: Path, slide_ids: Sequence[str]) -> None:
    """Write ``lesions.csv`` with the lesions of all packages, slides in the given order."""
    paths = [_table(packages / slide_id, slide_id) for slide_id in slide_ids]
    atomic_write_text(packages / "lesions.csv", joined([path.read_text("utf-8") for path in paths if path.exists()]))


def lesion_table(maps: ScoreMaps, lesions: Sequence[Lesion]) -> str:
    """Return a CSV with a row per lesion, largest first; positions are level-0 pixels of the full slide."""
    rows = [
        (
            maps.slide_id,
            lesion.number,
            f"{lesion.area_um2 / 1e6:.6g}",
            f"{lesion.diameter_um / 1e3:.6g}",
            f"{lesion.mean:.6g}",
            f"{lesion.highest:.6g}",
            *lesion.box_px0,
            *(round(at) for at in lesion.centroid_px0),
            f"{maps.threshold:g}",
            maps.model_id,
        )
        for lesion in lesions
    ]
    return table_text(COLUMNS, rows)


def joined(tables: Sequence[str]) -> str:
    """Return the tables of several slides as one."""
    return HEADER + "".join(text.removeprefix(HEADER) for text in tables)


def _table(package: Path, slide_id: str) -> Path:
    return package / f"{slide_id}_lesions.csv"


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
