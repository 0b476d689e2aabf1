"""Regions as GeoJSON, as QuPath 0.5 to 0.8 reads and writes them.

QuPath crops the slide to its bounds, and its coordinates are full-resolution pixels of that image. So the corner of the
bounds is added on reading and subtracted on writing; everywhere else regions are in level-0 pixels of the full slide.
"""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import shapely
from shapely import affinity
from shapely.geometry.base import BaseGeometry

from wsi_ips.errors import AnnotationError
from wsi_ips.geometry import Point

AREAS = frozenset({"Polygon", "MultiPolygon", "GeometryCollection"})


class Area(NamedTuple):
    """One annotated area."""

    classification: str  # name of its class in lower case, empty where it has none
    region: BaseGeometry  # valid polygons, level-0 pixels


def read_geojson(path: Path, *, bounds_origin: Point) -> list[Area]:
    """Read the areas of a GeoJSON file, which may be packed as ``.gz``; points and lines are left out.

    ``bounds_origin`` is the upper left corner of the scanned area, level-0 pixels.

    Raises
    ------
    AnnotationError
        Not readable, not GeoJSON, or a coordinate that is not a number.
    """
    try:
        data = path.read_bytes()
        document = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except OSError as error:
        raise AnnotationError(f"annotation {path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:
        raise AnnotationError(f"annotation {path}: not JSON ({error}); export it from QuPath again") from error
    areas = [area for number, feature in enumerate(_features(document, path)) for area in _areas(feature, number, path)]
    return [Area(name, affinity.translate(region, *bounds_origin)) for name, region in areas]


def geojson_of(
    regions: Sequence[tuple[str, BaseGeometry]], *, bounds_origin: Point, seed: str, locked: bool = False
) -> bytes:
    """Return regions (class, and polygons in level-0 pixels) as annotations that QuPath opens and edits.

    The same ``seed`` gives the same ids and the same bytes; ``locked`` ones cannot be moved.
    """
    features: list[dict[str, Any]] = []
    for classification, region in regions:
        shifted = affinity.translate(region, -bounds_origin.x, -bounds_origin.y)
        for polygon in polygons_of(shifted):
            number = len(features)
            features.append(
                {
                    "type": "Feature",
                    "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{seed}/{classification}/{number}")),
                    "geometry": shapely.geometry.mapping(shapely.set_precision(polygon, 0.01, mode="pointwise")),
                    "properties": {
                        "objectType": "annotation",
                        "name": f"{classification} {number + 1}",
                        "classification": {"name": classification, "color": COLOURS.get(classification, [60, 60, 200])},
                        "isLocked": locked,
                    },
                }
            )
    text = json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":"))
    return text.encode("utf-8")


COLOURS = {"Tissue": [0, 140, 70], "Tumor": [200, 0, 0]}
"""RGB by class; QuPath cannot read a class without a colour."""


def polygons_of(region: BaseGeometry) -> list[shapely.Polygon]:
    """Return the polygons in a geometry, without lines and points."""
    parts = shapely.get_parts(region).tolist()
    nested = [p for part in parts for p in shapely.get_parts(part).tolist()]
    return [part for part in nested if isinstance(part, shapely.Polygon) and not part.is_empty]


def _features(document: Any, path: Path) -> Sequence[Mapping[str, Any]]:
    if isinstance(document, Mapping) and document.get("type") == "FeatureCollection":
        document = document.get("features")
    elif isinstance(document, Mapping) and document.get("type") == "Feature":
        document = [document]
    if not isinstance(document, list) or not all(isinstance(f, Mapping) and f.get("geometry") for f in document):
        raise AnnotationError(
            f"annotation {path}: not GeoJSON with features; export it from QuPath as FeatureCollection"
        )
    return document


def _areas(feature: Mapping[str, Any], number: int, path: Path) -> list[Area]:
    geometry = feature["geometry"]
    if geometry.get("type") not in AREAS:
        return []
    try:
        region = shapely.make_valid(shapely.force_2d(shapely.geometry.shape(geometry)))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, shapely.errors.ShapelyError) as error:
        raise AnnotationError(f"annotation {path}: feature {number + 1} is not a polygon ({error})") from error
    parts = [part for part in polygons_of(region) if part.area > 0]
    return [Area(_class_of(feature), shapely.union_all(parts))] if parts else []


def _class_of(feature: Mapping[str, Any]) -> str:
    found = (feature.get("properties") or {}).get("classification")
    name = found.get("name", "") if isinstance(found, Mapping) else found
    return str(name or "").strip().lower()
