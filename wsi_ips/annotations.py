"""Hand-drawn regions from ASAP XML or GeoJSON (QuPath 0.5 to 0.8), and how much of a tile they cover.

Regions are valid polygons in level-0 pixels of the full slide. QuPath crops the slide to its bounds, so the corner of
the bounds is added to its coordinates on reading and subtracted on writing. ASAP's rings are not closed; the case of
its group names varies, as do the spaces around them.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ElementTree, ParseError, SubElement, indent

import numpy as np
import shapely
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse
from numpy.typing import NDArray
from shapely import affinity
from shapely.geometry.base import BaseGeometry
from skimage.draw import polygon2mask

from wsi_ips.errors import AnnotationClassError, AnnotationError
from wsi_ips.geometry import Point, Size
from wsi_ips.provenance import atomic_path

log = logging.getLogger(__name__)

# groups of CAMELYON16 (Tumor, _0, _1; hole: _2, Exclusion) and CAMELYON17 (metastases; hole: normal)
TUMOUR_GROUPS = frozenset({"tumor", "tumour", "_0", "_1", "metastases", "metastasis"})
HOLE_GROUPS = frozenset({"_2", "exclusion", "normal"})
AREA_TYPES = frozenset({"polygon", "spline", "rectangle"})
# classes of QuPath in lower case; an annotation without a class is tissue
TUMOUR_CLASSES = TUMOUR_GROUPS | {"carcinoma", "cancer", "malignant"}
EXCLUDED_CLASSES = HOLE_GROUPS | {"exclude", "excluded", "ignore", "ignore*", "hole", "benign"}
TISSUE_CLASSES = frozenset({"", "tissue", "region*"})
NOT_TISSUE = frozenset({"exclude", "excluded", "exclusion", "ignore", "ignore*", "hole", "glass", "background"})
COLOURS = {"Tissue": [0, 140, 70], "Tumor": [200, 0, 0]}  # RGB; QuPath cannot read a class without a colour
GEOJSON_SUFFIXES = (".geojson", ".json", ".geojson.gz")
GEOJSON_AREAS = frozenset({"Polygon", "MultiPolygon", "GeometryCollection"})
MOST_POINTS = 128  # of a piece of a region that boxes are cut out of


class Area(NamedTuple):
    """One annotated area."""

    classification: str  # name of its class or group in lower case, empty where it has none
    region: BaseGeometry


class Ring(NamedTuple):
    """A polygon without holes, to be written for ASAP."""

    name: str
    group: str
    points: NDArray[Any]  # x, y in level-0 pixels, shape (n, 2); not closed


@dataclass(frozen=True)
class Regions:
    """Annotated areas of one slide."""

    tumour: BaseGeometry  # union of the tumour polygons minus the holes; may be empty

    def lesions(self) -> list[shapely.Polygon]:
        """Return the connected parts of the tumour, largest first."""
        return sorted((part for part in polygons_of(self.tumour) if part.area > 0), key=lambda part: -part.area)


def read_annotation(path: Path, *, bounds_origin: Point) -> Regions:
    """Read the annotated tumour from a file: GeoJSON or ASAP XML, by its suffix.

    ``bounds_origin`` is the upper left corner of the scanned area, level-0 pixels.

    Raises
    ------
    AnnotationError
        The file cannot be read or has another format; an AnnotationClassError if no area is of a known class.
    """
    areas = read_areas(path, bounds_origin=bounds_origin)
    return Regions(_difference(areas, TUMOUR_CLASSES, EXCLUDED_CLASSES, path, what="tumour"))


def read_areas(path: Path, *, bounds_origin: Point) -> list[Area]:
    """Read the areas of a file with their classes, whatever these are; parameters as in :func:`read_annotation`."""
    if path.name.lower().endswith(GEOJSON_SUFFIXES):
        return read_geojson(path, bounds_origin=bounds_origin)
    return list(_asap_areas(_asap_root(path), path))


def read_tissue(path: Path, *, bounds_origin: Point) -> BaseGeometry:
    """Read a tissue mask that was drawn or corrected in QuPath; raises AnnotationError where no area is tissue."""
    areas = read_geojson(path, bounds_origin=bounds_origin)
    region = _difference(areas, TISSUE_CLASSES, NOT_TISSUE, path, what="tissue")
    if region.is_empty:
        raise AnnotationError(f"tissue mask {path}: no area in it; draw the tissue, or leave `tissue_mask` empty")
    return region


def _difference(
    areas: Sequence[Area], wanted: frozenset[str], holes: frozenset[str], path: Path, *, what: str
) -> BaseGeometry:
    """Return the union of the wanted areas minus that of the holes; log the other classes."""
    found = {area.classification for area in areas}
    if found and not found & (wanted | holes):
        raise AnnotationClassError(
            f"annotation {path}: areas of classes or groups {_listed(found)}, none of them {what} ({_listed(wanted)}) "
            f"or left out ({_listed(holes)}); rename them in QuPath or ASAP"
        )
    if others := found - wanted - holes:
        log.info("annotation %s: areas of class %s are left out", path.name, _listed(others))
    parts = [[area.region for area in areas if area.classification in names] for names in (wanted, holes)]
    return shapely.difference(shapely.union_all(parts[0]), shapely.union_all(parts[1]))


def _listed(names: set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(name or "(none)" for name in names))


def polygons_of(region: BaseGeometry) -> list[shapely.Polygon]:
    """Return the polygons in a geometry, without lines and points."""
    parts = [p for part in shapely.get_parts(region).tolist() for p in shapely.get_parts(part).tolist()]
    return [part for part in parts if isinstance(part, shapely.Polygon) and not part.is_empty]


def read_asap(path: Path) -> Regions:
    """Read an ASAP file; repair self-intersecting rings; skip rings without area and log them.

    Raises AnnotationError where it is missing, not ASAP XML, or has polygons but none in a tumour or hole group.
    """
    areas = list(_asap_areas(_asap_root(path), path))
    return Regions(_difference(areas, TUMOUR_CLASSES, EXCLUDED_CLASSES, path, what="tumour"))


def _asap_root(path: Path) -> Element:
    try:
        root = parse(path).getroot()
    except OSError as error:
        raise AnnotationError(f"annotation {path}: cannot be read ({error.strerror})") from error
    except (ParseError, DefusedXmlException) as error:
        raise AnnotationError(f"annotation {path}: not safe XML: {error}; export it from ASAP again") from error
    if root is None or root.tag != "ASAP_Annotations":
        raise AnnotationError(f"annotation {path}: not an ASAP file (root element is not ASAP_Annotations)")
    found: Element = root
    return found


def _asap_areas(root: Element, path: Path) -> Iterator[Area]:
    for annotation in root.iter("Annotation"):
        kind, name = annotation.get("Type", "").strip().lower(), annotation.get("Name", "?")
        try:
            ring = [(float(c.attrib["X"]), float(c.attrib["Y"])) for c in annotation.iter("Coordinate")]
        except (KeyError, ValueError) as error:
            raise AnnotationError(f"annotation {path}: {name}: a coordinate is not a number ({error})") from error
        if kind not in AREA_TYPES or len(set(ring)) < 3:
            log.info(
                "annotation %s: %s (%s of %d points) has no area and is left out", path.name, name, kind, len(ring)
            )
            continue
        polygons = polygons_of(shapely.make_valid(shapely.Polygon(ring)))
        yield Area(annotation.get("PartOfGroup", "").strip().lower(), shapely.union_all(polygons))


def write_asap(path: Path, polygons: Sequence[NDArray[Any]]) -> None:
    """Write tumour polygons, each of shape (n, 2): x, y in level-0 pixels, ring not closed."""
    rings = [Ring(f"Annotation {number}", "Tumor", polygon) for number, polygon in enumerate(polygons)]
    write_rings(path, rings, groups=["Tumor"])


def write_rings(path: Path, rings: Sequence[Ring], *, groups: Sequence[str]) -> None:
    """Write polygons of several groups, which may be empty; the file is complete or absent."""
    root = Element("ASAP_Annotations")
    annotations, listed = SubElement(root, "Annotations"), SubElement(root, "AnnotationGroups")
    for name, group, points in rings:
        facts = {"Name": name, "Type": "Polygon", "PartOfGroup": group, "Color": "#F4FA58"}
        coordinates = SubElement(SubElement(annotations, "Annotation", facts), "Coordinates")
        for order, (x, y) in enumerate(points):
            SubElement(coordinates, "Coordinate", Order=str(order), X=f"{x:.2f}", Y=f"{y:.2f}")
    for group in groups:
        entry = SubElement(listed, "Group", Name=group, PartOfGroup="None", Color="#64FE2E")
        SubElement(entry, "Attributes")
    indent(root, "\t")
    with atomic_path(path) as temporary:
        ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def read_geojson(path: Path, *, bounds_origin: Point) -> list[Area]:
    """Read the areas of a GeoJSON file, which may be gzipped (``.gz``); points and lines are left out.

    Raises AnnotationError where it is not readable, not GeoJSON, or a coordinate is not a number.
    """
    try:
        data = path.read_bytes()
        document = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except OSError as error:
        raise AnnotationError(f"annotation {path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:
        raise AnnotationError(f"annotation {path}: not JSON ({error}); export it from QuPath again") from error
    if isinstance(document, Mapping):
        document = [document] if document.get("type") == "Feature" else document.get("features")
    if not isinstance(document, list) or not all(isinstance(f, Mapping) and f.get("geometry") for f in document):
        raise AnnotationError(f"annotation {path}: not GeoJSON with features; export it from QuPath again")
    areas = []
    for number, feature in enumerate(document, 1):
        if feature["geometry"].get("type") not in GEOJSON_AREAS:
            continue
        try:
            region = shapely.make_valid(shapely.force_2d(shapely.geometry.shape(feature["geometry"])))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, shapely.errors.ShapelyError) as error:
            raise AnnotationError(f"annotation {path}: feature {number} is not a polygon ({error})") from error
        if parts := [part for part in polygons_of(region) if part.area > 0]:
            areas.append(Area(_class_of(feature), affinity.translate(shapely.union_all(parts), *bounds_origin)))
    return areas


def _class_of(feature: Mapping[str, Any]) -> str:
    found = (feature.get("properties") or {}).get("classification")
    name = found.get("name", "") if isinstance(found, Mapping) else found
    return str(name or "").strip().lower()


def geojson_of(regions: Sequence[tuple[str, BaseGeometry]], *, bounds_origin: Point, seed: str) -> bytes:
    """Return regions (class, polygons) as annotations that QuPath can edit; the same seed gives the same ids."""
    features: list[dict[str, Any]] = []
    for classification, region in regions:
        shifted = affinity.translate(region, -bounds_origin.x, -bounds_origin.y)
        for number, polygon in enumerate(polygons_of(shifted), len(features)):
            features.append(
                {
                    "type": "Feature",
                    "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{seed}/{classification}/{number}")),
                    "geometry": shapely.geometry.mapping(shapely.set_precision(polygon, 0.01, mode="pointwise")),
                    "properties": {
                        "objectType": "annotation",
                        "name": f"{classification} {number + 1}",
                        "classification": {"name": classification, "color": COLOURS.get(classification, [60, 60, 200])},
                        "isLocked": False,
                    },
                }
            )
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")).encode()


def tumour_fraction(region: BaseGeometry, boxes_px0: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the exact share of each box (x, y, width, height; shape (N, 4)) in a region: float32, shape (N,), 0-1."""
    if region.is_empty or len(boxes_px0) == 0:
        return np.zeros(len(boxes_px0), np.float32)
    x, y, width, height = boxes_px0.T
    boxes = shapely.box(x, y, x + width, y + height)
    # A lesion outline has tens of thousands of points, so each box is cut out of a small piece of it.
    pieces = [piece for part in shapely.get_parts(region).tolist() for piece in _pieces(part)]
    tree = shapely.STRtree(pieces)
    row, piece = tree.query(boxes)
    shapely.prepare(tree.geometries)
    areas = (width * height)[row]
    edge = ~shapely.contains_properly(tree.geometries[piece], boxes[row])
    areas[edge] = shapely.area(shapely.intersection(tree.geometries[piece[edge]], boxes[row[edge]]))
    covered = np.bincount(row, areas, minlength=len(boxes))
    return np.asarray(np.clip(covered / (width * height), 0, 1), np.float32)


def region_mask(region: BaseGeometry, size_px0: Size, *, downsample: float) -> NDArray[np.bool_]:
    """Return a bool mask at ``downsample`` (size rounded up): pixels whose centre lies in a region."""
    rows, columns = math.ceil(size_px0.height / downsample), math.ceil(size_px0.width / downsample)
    mask = np.zeros((rows, columns), bool)
    for part in polygons_of(region):  # polygons do not overlap: a hole is outside all others, or contains an island
        left, top, right, bottom = np.array(part.bounds) / downsample
        x, y = max(0, int(left)), max(0, int(top))
        box = (slice(y, min(rows, int(bottom) + 1)), slice(x, min(columns, int(right) + 1)))
        if 0 in mask[box].shape or part.area == 0:
            continue
        corner, window = np.array([x, y]) + 0.5, mask[box]  # pixel centres become whole numbers
        inside, *holes = (shapely.get_coordinates(r) / downsample - corner for r in (part.exterior, *part.interiors))
        shown = polygon2mask(window.shape, inside[:, ::-1])
        for hole in holes:
            shown &= ~polygon2mask(window.shape, hole[:, ::-1])
        window |= shown
    return mask


def _pieces(part: BaseGeometry) -> Iterator[BaseGeometry]:
    """Split a geometry in half repeatedly until each piece has few points; the areas add up."""
    waiting = [part]
    while waiting:
        piece = waiting.pop()
        if shapely.get_num_coordinates(piece) <= MOST_POINTS:
            yield piece
            continue
        left, top, right, bottom = piece.bounds
        if right - left >= bottom - top:
            middle = (left + right) / 2
            halves = [shapely.box(left, top, middle, bottom), shapely.box(middle, top, right, bottom)]
        else:
            middle = (top + bottom) / 2
            halves = [shapely.box(left, top, right, middle), shapely.box(left, middle, right, bottom)]
        waiting += [half for half in shapely.intersection(piece, halves).tolist() if half.area > 0]
