"""ASAP XML annotations, as CAMELYON16 and CAMELYON17 publish them.

Coordinates are level-0 pixels, rings are not closed. Tumour groups are ``Tumor``, ``_0``, ``_1`` (CAMELYON16) or
``metastases`` (CAMELYON17); hole groups are ``_2``, ``Exclusion`` or ``normal``. Case and blanks vary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ElementTree, ParseError, SubElement, indent

import numpy as np
import shapely
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations.geojson import polygons_of
from wsi_ips.errors import AnnotationError
from wsi_ips.provenance import atomic_path

log = logging.getLogger(__name__)

TUMOUR_GROUPS = frozenset({"tumor", "tumour", "_0", "_1", "metastases", "metastasis"})
HOLE_GROUPS = frozenset({"_2", "exclusion", "normal"})
AREA_TYPES = frozenset({"polygon", "spline", "rectangle"})
GROUP_COLOUR = "#64FE2E"
REGION_COLOUR = "#F4FA58"


@dataclass(frozen=True)
class Regions:
    """Annotated areas of one slide."""

    tumour: BaseGeometry  # union of the tumour polygons minus the holes, level-0 pixels; may be empty

    def lesions(self) -> list[shapely.Polygon]:
        """Return the connected parts of the tumour, largest first."""
        parts = [part for part in polygons_of(self.tumour) if part.area > 0]
        return sorted(parts, key=lambda part: -part.area)


def read_asap(path: Path) -> Regions:
    """Read an annotation file.

    Self-intersecting rings are made valid. Rings of fewer than three points, dots and point sets are left out and
    logged.

    Raises
    ------
    AnnotationError
        No such file, not ASAP XML, or polygons of which none is in a tumour or hole group.
    """
    try:
        root = parse(path).getroot()
    except OSError as error:
        raise AnnotationError(f"annotation {path}: cannot be read ({error.strerror})") from error
    except (ParseError, DefusedXmlException) as error:
        raise AnnotationError(f"annotation {path}: not safe XML: {error}; export it from ASAP again") from error
    if root is None or root.tag != "ASAP_Annotations":
        raise AnnotationError(f"annotation {path}: not an ASAP file (root element is not ASAP_Annotations)")
    found: dict[str, list[BaseGeometry]] = {}
    for group, polygon in _areas(root, path):
        found.setdefault(group, []).append(polygon)
    tumour = [p for group, polygons in found.items() if group in TUMOUR_GROUPS for p in polygons]
    holes = [p for group, polygons in found.items() if group in HOLE_GROUPS for p in polygons]
    if found and not tumour and not holes:
        raise AnnotationError(
            f"annotation {path}: polygons in groups {', '.join(sorted(found))}, none of them tumour "
            f"({', '.join(sorted(TUMOUR_GROUPS))}) or hole ({', '.join(sorted(HOLE_GROUPS))}); rename the groups"
        )
    return Regions(shapely.difference(shapely.union_all(tumour), shapely.union_all(holes)))


class Ring(NamedTuple):
    """A polygon without holes."""

    # name and group in ASAP
    name: str
    group: str
    points: NDArray[np.floating]  # x, y in level-0 pixels, shape (n, 2); not closed


def write_asap(path: Path, polygons: Sequence[NDArray], *, group: str = "Tumor") -> None:  # type: ignore[type-arg]
    """Write polygons of one group, each of shape (n, 2): x, y in level-0 pixels, ring not closed."""
    rings = [Ring(f"Annotation {number}", group, polygon) for number, polygon in enumerate(polygons)]
    write_rings(path, rings, groups=[group])


def write_rings(path: Path, rings: Sequence[Ring], *, groups: Sequence[str]) -> None:
    """Write polygons of several groups, which may be empty; the file is complete or absent."""
    root = Element("ASAP_Annotations")
    annotations = SubElement(root, "Annotations")
    for ring in rings:
        annotation = SubElement(
            annotations,
            "Annotation",
            Name=ring.name,
            Type="Polygon",
            PartOfGroup=ring.group,
            Color=REGION_COLOUR,
        )
        coordinates = SubElement(annotation, "Coordinates")
        for order, (x, y) in enumerate(ring.points):
            SubElement(coordinates, "Coordinate", Order=str(order), X=f"{x:.2f}", Y=f"{y:.2f}")
    listed = SubElement(root, "AnnotationGroups")
    for group in groups:
        entry = SubElement(listed, "Group", Name=group, PartOfGroup="None", Color=GROUP_COLOUR)
        SubElement(entry, "Attributes")
    indent(root, "\t")
    with atomic_path(path) as temporary:
        ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def _areas(root: Element, path: Path) -> Iterator[tuple[str, BaseGeometry]]:
    """Yield group (lower case, stripped) and valid geometry of each area."""
    for annotation in root.iter("Annotation"):
        kind = annotation.get("Type", "").strip().lower()
        name = annotation.get("Name", "?")
        if kind not in AREA_TYPES:
            log.info("annotation %s: %s of type %s has no area and is left out", path.name, name, kind or "?")
            continue
        try:
            ring = [(float(c.attrib["X"]), float(c.attrib["Y"])) for c in annotation.iter("Coordinate")]
        except (KeyError, ValueError) as error:
            raise AnnotationError(f"annotation {path}: {name}: a coordinate is not a number ({error})") from error
        if len(set(ring)) < 3:
            log.info("annotation %s: %s has fewer than three points and is left out", path.name, name)
            continue
        group = annotation.get("PartOfGroup", "").strip().lower()
        yield group, shapely.union_all(polygons_of(shapely.make_valid(shapely.Polygon(ring))))
