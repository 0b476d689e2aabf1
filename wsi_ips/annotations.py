"""Hand-drawn regions from ASAP XML or GeoJSON (QuPath 0.5 to 0.8), and how much of a tile they cover.

Regions are valid polygons in level-0 pixels of the full slide. QuPath crops the slide to its bounds, so the corner of
the bounds is added to its coordinates on reading and subtracted on writing. ASAP's rings are not closed; the case of
its group names varies, as do the spaces around them.

Derived classes of QuPath (``Tumor: Positive``) and nested groups of ASAP have one form: names from the general to the
particular, in lower case, joined by ``: ``. :func:`class_of` decides what they mean.
"""

from __future__ import annotations

import gzip
import json
import math
import uuid
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

from wsi_ips.errors import AnnotationClassError, AnnotationError
from wsi_ips.geometry import Point, Size
from wsi_ips.outline_repair import polygons_of, repaired
from wsi_ips.provenance import atomic_path

# groups of CAMELYON16 (Tumor, _0, _1; hole: _2, Exclusion) and CAMELYON17 (metastases; hole: normal)
TUMOUR_GROUPS = frozenset({"tumor", "tumour", "_0", "_1", "metastases", "metastasis"})
HOLE_GROUPS = frozenset({"_2", "exclusion", "normal"})
AREA_TYPES = frozenset({"polygon", "spline", "rectangle"})
# classes of QuPath in lower case; an annotation without a class is tissue
TUMOUR_CLASSES = TUMOUR_GROUPS | {"carcinoma", "cancer", "malignant"}
EXCLUDED_CLASSES = HOLE_GROUPS | {"exclude", "excluded", "ignore", "ignore*", "hole", "benign"}
# common classes that are not tumour; areas of other unknown classes may be
OTHER_CLASSES = frozenset({"stroma", "immune cells", "necrosis", "region*", "tissue", "background", "glass", "fat"})
OTHER_CLASSES |= frozenset({"artifact", "artefact", "not analysed", "roi", "annotated area"})
MOST_NAMES = 10  # of classes in a message
NONE = "none"  # stands for areas without a class
TISSUE_CLASSES = frozenset({"", "tissue", "region*"})
NOT_TISSUE = frozenset({"exclude", "excluded", "exclusion", "ignore", "ignore*", "hole", "glass", "background"})
COLOURS = {"Tissue": [0, 140, 70], "Tumor": [200, 0, 0]}  # RGB; QuPath cannot read a class without a colour
GEOJSON_SUFFIXES = (".geojson", ".json", ".geojson.gz")
GEOJSON_AREAS = frozenset({"Polygon", "MultiPolygon", "GeometryCollection"})
# QuPath's objects that are no annotations
OTHER_OBJECTS = {"cell": "cells", "detection": "detections", "tile": "tiles", "tmacore": "TMA cores"}
EDGES = 4096  # of a ring that are drawn together
MOST_POINTS = 128  # of a piece of a region that boxes are cut out of
LARGEST_PX0 = 1e8  # coordinates beyond it belong to no slide
MOST_BYTES = 2**30  # of a GeoJSON file, unpacked
Classes = Mapping[str, str | None]  # class to count others as, by name: `tiles.annotation_classes`


class Area(NamedTuple):
    """One annotated area, or another object, whose region is empty."""

    classification: str  # names of its class or groups in lower case, joined by ": "; empty where it has none
    region: BaseGeometry
    what: str = ""  # empty for areas, else what the object is: `without area`, `cells` ...


class Ring(NamedTuple):
    """A polygon without holes, to be written for ASAP."""

    name: str
    group: str
    points: NDArray[Any]  # x, y in level-0 pixels, shape (n, 2); not closed


@dataclass(frozen=True)
class Regions:
    """Annotated areas of one slide."""

    tumour: BaseGeometry  # union of the tumour polygons minus the holes; may be empty
    unknown: BaseGeometry = field(default_factory=shapely.Polygon)  # areas that may be tumour, outside all known ones
    unused: Mapping[str, int] = field(default_factory=dict)  # number of outlines of each class that are not used

    def lesions(self) -> list[shapely.Polygon]:
        """Return the connected parts of the tumour, largest first; parts thinner than a pixel are not lesions."""
        parts = [part for part in polygons_of(self.tumour) if 2 * part.area > part.length]
        return sorted(parts, key=lambda part: -part.area)

    def remark(self) -> str:
        """Return which outlines are not used, and what to do where they may be tumour; empty where all are."""
        text = f"outlines that are not used: {counted(self.unused)}" if self.unused else ""
        return text if self.unknown.is_empty else f"{text} - {ADVICE}"


ADVICE = (
    "some may be tumour, so lesions of this slide are not measured; rename them to Tumor or Exclude, or say what they "
    "are in `tiles.annotation_classes`: {NAME: tumor}, exclude, or null for other tissue"
)


def read_annotation(path: Path, *, bounds_origin: Point, classes: Classes | None = None) -> Regions:
    """Read the annotated tumour from a file: GeoJSON or ASAP XML, by its suffix.

    ``bounds_origin`` is the upper left corner of the scanned area, level-0 pixels; ``classes`` says what to count other
    classes as (`tiles.annotation_classes`).

    Raises
    ------
    AnnotationError
        The file cannot be read or has another format; an AnnotationClassError if no area is known to be tumour, and
        some may be.
    """
    areas = read_areas(path, bounds_origin=bounds_origin, classes=classes)
    known: dict[str, list[BaseGeometry]] = {"tumour": [], "hole": [], "": []}
    unused: Counter[str] = Counter()
    for area in areas:
        name = class_of(area.classification, TUMOUR_CLASSES | OTHER_CLASSES)
        kind = "" if area.what else "tumour" if name in TUMOUR_CLASSES else "hole" if name in EXCLUDED_CLASSES else ""
        if not kind:
            unused[" ".join(filter(None, (area.classification or NONE, area.what)))] += 1
        if kind or name not in OTHER_CLASSES:
            known[kind].append(area.region)
    tumour, hole, unknown = (shapely.union_all(parts) for parts in known.values())
    found = Regions(
        shapely.difference(tumour, hole), shapely.difference(unknown, shapely.union(tumour, hole)), dict(unused)
    )
    if found.tumour.is_empty and not found.unknown.is_empty:
        raise AnnotationClassError(f"annotation {path}: {found.remark()}")
    return found


def read_asap(path: Path) -> Regions:
    """Read the annotated tumour from ASAP XML; see :func:`read_annotation`."""
    return read_annotation(path, bounds_origin=Point(0, 0))


def read_areas(path: Path, *, bounds_origin: Point, classes: Classes | None = None) -> list[Area]:
    """Read the areas of a file with their classes, whatever these are; parameters as in :func:`read_annotation`."""
    if path.name.lower().endswith(GEOJSON_SUFFIXES):
        areas = read_geojson(path, bounds_origin=bounds_origin)
    else:
        areas = list(_asap_areas(_asap_root(path), path))
    renamed = {joined_names([*name.split(":")]): joined_names([to or "tissue"]) for name, to in (classes or {}).items()}
    return [a._replace(classification=renamed.get(_first(a.classification, renamed), a.classification)) for a in areas]


def read_tissue(path: Path, *, bounds_origin: Point) -> BaseGeometry:
    """Read a tissue mask that was drawn or corrected in QuPath; raises AnnotationError where no area is tissue."""
    parts: dict[bool, list[BaseGeometry]] = {True: [], False: []}
    for area in read_geojson(path, bounds_origin=bounds_origin):
        name = _first(area.classification, TISSUE_CLASSES | NOT_TISSUE)
        if name in NOT_TISSUE or name in TISSUE_CLASSES:
            parts[name in TISSUE_CLASSES].append(area.region)
    region = shapely.difference(*(shapely.union_all(regions) for regions in parts.values()))
    if region.is_empty:
        raise AnnotationError(f"tissue mask {path}: no area in it; draw the tissue, or leave `tissue_mask` empty")
    return region


def class_of(classification: str, known: Collection[str]) -> str:
    """Return the name that decides what a class means: an excluded one, else the first that is known, else as it is.

    >>> class_of("tumor: positive", TUMOUR_CLASSES), class_of("tumor: exclusion", TUMOUR_CLASSES)
    ('tumor', 'exclusion')
    """
    names = (classification, *classification.split(": "))
    return next((name for name in names if name in EXCLUDED_CLASSES), "") or _first(classification, known)


def _first(classification: str, known: Collection[str]) -> str:
    return next((name for name in (classification, *classification.split(": ")) if name in known), classification)


def joined_names(names: Sequence[str]) -> str:
    """Return names of a class, the general one first, as one text; `None` is ASAP's name for no group."""
    plain = (" ".join(name.lower().split()) for name in names)
    return ": ".join(name for name in plain if name not in ("", NONE))


def counted(counts: Mapping[str, int]) -> str:
    """Return classes with their numbers of outlines, the most frequent first."""
    shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(shown) - MOST_NAMES} further classes" if len(shown) > MOST_NAMES else ""
    return ", ".join(f"{name[:60]} ({count})" for name, count in shown[:MOST_NAMES]) + more


def _asap_root(path: Path) -> Element:
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start[:2] in (b"II", b"MM") or start == b"\x89PNG" or start[:2] == b"\xff\xd8":
            raise AnnotationError(
                f"annotation {path}: a picture, and outlines are expected: ASAP XML, or GeoJSON exported from QuPath; "
                "make outlines of the mask first, or empty the cell `annotation` of the manifest"
            )
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
    parents = {g.get("Name", "").strip(): g.get("PartOfGroup", "").strip() for g in root.iter("Group")}
    for annotation in root.iter("Annotation"):
        kind, name = annotation.get("Type", "").strip().lower(), annotation.get("Name", "?")
        groups = [annotation.get("PartOfGroup", "").strip()]
        while (parent := parents.get(groups[-1], "")) and parent not in groups:
            groups.append(parent)
        classification = joined_names(groups[::-1])
        ring = _asap_ring(annotation, f"annotation {path}: {name}")
        if kind == "rectangle" and len(ring) == 2:
            ring = shapely.get_coordinates(shapely.box(*ring.min(0), *ring.max(0)))[:-1]
        if kind not in AREA_TYPES or len(np.unique(ring, axis=0)) < 3:
            yield Area(classification, shapely.Polygon(), "without area")
            continue
        yield Area(classification, repaired(shapely.Polygon(ring), f"annotation {path}: {name}"))


def _asap_ring(annotation: Element, where: str) -> NDArray[np.float64]:
    """Return the points of an annotation in their order, shape (n, 2)."""
    points = list(annotation.iter("Coordinate"))
    try:
        ring = np.array([(float(p.attrib["X"]), float(p.attrib["Y"])) for p in points]).reshape(-1, 2)
        order = [int(p.get("Order", number)) for number, p in enumerate(points)]
    except (KeyError, ValueError) as error:
        raise AnnotationError(f"{where}: a coordinate is not a number ({str(error)[:80]})") from error
    _require_places(ring, where)
    return ring[np.argsort(order, kind="stable")]


def _require_places(points: NDArray[np.float64], where: str) -> None:
    if not (np.abs(points) < LARGEST_PX0).all():  # also false for NaN
        raise AnnotationError(f"{where}: a coordinate is not a place on a slide (NaN, or beyond {LARGEST_PX0:g} px)")


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
    """Read the areas of a GeoJSON file, which may be gzipped (``.gz``); other objects have an empty region.

    Raises AnnotationError where it is not readable, not GeoJSON, or a coordinate is not a number.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise AnnotationError(f"annotation {path}: over {MOST_BYTES >> 20} MiB; export annotations only, no cells")
        document = json.loads(data)
    except OSError as error:
        raise AnnotationError(f"annotation {path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError, RecursionError, zlib.error) as error:
        raise AnnotationError(f"annotation {path}: not JSON ({error}); export it from QuPath again") from error
    if isinstance(document, Mapping):
        document = [document] if document.get("type") == "Feature" else document.get("features")
    if not isinstance(document, list) or not all(isinstance(f, Mapping) and "geometry" in f for f in document):
        raise AnnotationError(f"annotation {path}: not GeoJSON with features; export it from QuPath again")
    areas = []
    for number, feature in enumerate(document, 1):
        where = f"annotation {path}: feature {number}"
        try:
            area = _area_of(feature, where)
        except AnnotationError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise AnnotationError(f"{where} is not a polygon ({str(error)[:80]})") from error
        except shapely.errors.ShapelyError as error:
            raise AnnotationError(f"{where} is not a polygon ({error})") from error
        areas.append(area._replace(region=affinity.translate(area.region, *bounds_origin)))
    return areas


def _area_of(feature: Mapping[str, Any], where: str) -> Area:
    """Return a feature as an area."""
    properties = feature.get("properties") or {}
    kind = str(properties.get("objectType") or properties.get("object_type") or feature.get("id") or "").lower()
    kind = kind.removeprefix("path").removesuffix("object").replace("_", "")  # QuPath 0.2: `PathCellObject`
    found = properties.get("classification")
    names = found.get("names") or found.get("name") if isinstance(found, Mapping) else found
    classification = joined_names([str(n) for n in names] if isinstance(names, list) else str(names or "").split(":"))
    geometry = feature["geometry"]
    if kind in OTHER_OBJECTS:
        return Area(classification, shapely.Polygon(), OTHER_OBJECTS[kind])
    if geometry is None or geometry.get("type") not in GEOJSON_AREAS:
        return Area(classification, shapely.Polygon(), "without area")
    with np.errstate(invalid="ignore"):  # NaN is refused below
        shape = shapely.force_2d(shapely.geometry.shape(geometry))
    _require_places(shapely.get_coordinates(shape), where)
    parts = [repaired(polygon, where) for polygon in polygons_of(shape)]
    region = shapely.union_all([part for part in parts if part.area > 0])
    return Area(classification, region, "without area" if region.is_empty else "")


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
    """Return a bool mask at ``downsample`` (size rounded up): pixels whose centre lies in a region.

    A row of pixels changes sides wherever an edge crosses the line of its centres; the time grows with the edges.
    """
    rows, columns = math.ceil(size_px0.height / downsample), math.ceil(size_px0.width / downsample)
    changes = np.zeros((rows, columns + 1), bool)
    for ring in (ring for part in polygons_of(region) for ring in (part.exterior, *part.interiors)):
        points = shapely.get_coordinates(ring) / downsample - 0.5  # pixel centres become whole numbers
        for start in range(0, len(points) - 1, EDGES):
            (x, y), (to_x, to_y) = points[start : start + EDGES + 1][:-1].T, points[start + 1 : start + EDGES + 1].T
            first, last = np.clip(np.ceil([np.minimum(y, to_y), np.maximum(y, to_y)]), 0, rows).astype(int)
            edge = np.repeat(np.arange(len(y)), last - first)
            row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
            at = x[edge] + (row - y[edge]) * (to_x - x)[edge] / (to_y - y)[edge]
            np.logical_xor.at(changes, (row, np.clip(np.ceil(at), 0, columns).astype(int)), True)
    return np.asarray(np.logical_xor.accumulate(changes[:, :-1], axis=1))


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
