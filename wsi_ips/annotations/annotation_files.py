"""Annotation files of any form as regions: ASAP XML, or GeoJSON as QuPath exports it."""

from __future__ import annotations

import logging
from pathlib import Path

import shapely
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations.asap_xml import HOLE_GROUPS, TUMOUR_GROUPS, Regions, read_asap
from wsi_ips.annotations.geojson import Area, read_geojson
from wsi_ips.errors import AnnotationError
from wsi_ips.geometry import Point

log = logging.getLogger(__name__)

TUMOUR_CLASSES = TUMOUR_GROUPS | {"carcinoma", "cancer", "malignant"}
EXCLUDED_CLASSES = HOLE_GROUPS | {"exclude", "excluded", "ignore", "ignore*", "hole", "benign"}
TISSUE_CLASSES = frozenset({"", "tissue", "region*"})
"""Classes of QuPath in lower case; an annotation without a class is tissue."""
NOT_TISSUE = frozenset({"exclude", "excluded", "exclusion", "ignore", "ignore*", "hole", "glass", "background"})
GEOJSON_SUFFIXES = (".geojson", ".json", ".geojson.gz")


def read_annotation(path: Path, *, bounds_origin: Point) -> Regions:
    """Read the annotated tumour of a file; its ending tells the form.

    Parameters
    ----------
    path
        ASAP XML (``.xml``) or GeoJSON (``.geojson``, ``.json``, ``.geojson.gz``).
    bounds_origin
        Upper left corner of the scanned area, level-0 pixels, from which QuPath counts.

    Raises
    ------
    AnnotationError
        Not readable, of another form, or without a known class.
    """
    if not path.name.lower().endswith(GEOJSON_SUFFIXES):
        return read_asap(path)
    areas = read_geojson(path, bounds_origin=bounds_origin)
    region = _difference(areas, TUMOUR_CLASSES, EXCLUDED_CLASSES, path, what="tumour")
    return Regions(region)


def read_tissue(path: Path, *, bounds_origin: Point) -> BaseGeometry:
    """Read a tissue mask that was drawn or corrected in QuPath, in level-0 pixels.

    Raises
    ------
    AnnotationError
        Not readable, not GeoJSON, or without an area that is tissue.
    """
    region = _difference(
        read_geojson(path, bounds_origin=bounds_origin), TISSUE_CLASSES, NOT_TISSUE, path, what="tissue"
    )
    if region.is_empty:
        raise AnnotationError(f"tissue mask {path}: no area in it; draw the tissue, or leave `tissue_mask` empty")
    return region


def _difference(
    areas: list[Area], wanted: frozenset[str], holes: frozenset[str], path: Path, *, what: str
) -> BaseGeometry:
    """Return the union of the wanted areas minus that of the holes; log the other classes."""
    found = {area.classification for area in areas}
    if found and not found & (wanted | holes):
        shown = ", ".join(sorted(name or "(none)" for name in found))
        raise AnnotationError(
            f"annotation {path}: areas of class {shown}, none of them {what} ({_listed(wanted)}) or left out "
            f"({_listed(holes)}); set the classes in QuPath"
        )
    if others := found - wanted - holes:
        log.info("annotation %s: areas of class %s are left out", path.name, _listed(frozenset(others)))
    parts = [
        shapely.union_all([area.region for area in areas if area.classification in names]) for names in (wanted, holes)
    ]
    return shapely.difference(parts[0], parts[1])


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(name or "(none)" for name in names))
