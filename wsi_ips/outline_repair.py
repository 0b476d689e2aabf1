"""Hand-drawn outlines made valid in bounded time: what they enclose, crossed or not, without slivers."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_ips.errors import AnnotationError

MOST_RING_POINTS = 50_000  # rings with more points are thinned
RUN = 256  # points that are thinned together: the time grows with its square
FINEST_PX0, COARSEST_PX0 = 0.25, 16.0  # how far thinning may move an outline
MOST_CROSSINGS = 50_000  # of an outline with itself, estimated; repair takes seconds at that
SAMPLED = 256  # segments whose crossings are counted
SLIVER = 0.01  # smaller parts of a repaired outline, relative to its largest, are slips of the pen


def polygons_of(region: BaseGeometry) -> list[shapely.Polygon]:
    """Return the polygons in a geometry, without lines and points."""
    parts = [p for part in shapely.get_parts(region).tolist() for p in shapely.get_parts(part).tolist()]
    return [part for part in parts if isinstance(part, shapely.Polygon) and not part.is_empty]


def repaired(polygon: shapely.Polygon, where: str) -> BaseGeometry:
    """Return a polygon as a valid region, in bounded time: what a hand-drawn outline encloses, crossed or not.

    Raises AnnotationError where the outline is no outline: too many points, or crossings with itself.
    """
    rings = [_thinned(shapely.get_coordinates(ring), where) for ring in (polygon.exterior, *polygon.interiors)]
    polygon = shapely.Polygon(rings[0], rings[1:])
    for ring in rings:
        if len(ring) > SAMPLED and _crossings(ring) > MOST_CROSSINGS:
            raise AnnotationError(f"{where}: crosses itself over {MOST_CROSSINGS} times; draw it again")
    if polygon.is_valid:
        return polygon
    # `structure` fills what an outline goes around twice; `linework` would make a hole, and slivers at each crossing
    parts = polygons_of(shapely.make_valid(polygon, method="structure", keep_collapsed=False))
    least = SLIVER * max((part.area for part in parts), default=0)
    return shapely.union_all([part for part in parts if part.area > least])


def _thinned(ring: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """Return a closed ring, shape (n, 2), with few points: runs of it are simplified, ever coarser."""
    tolerance, points = FINEST_PX0, len(ring)
    while len(ring) > MOST_RING_POINTS:
        if tolerance > COARSEST_PX0:
            raise AnnotationError(f"{where}: an outline of {points} points, which is too many; simplify it")
        runs = [ring[start : start + RUN + 1] for start in range(0, len(ring) - 1, RUN)]
        lines = shapely.linestrings(np.concatenate(runs), indices=np.repeat(np.arange(len(runs)), [*map(len, runs)]))
        thin = [
            shapely.get_coordinates(line)[:-1] for line in shapely.simplify(lines, tolerance, preserve_topology=False)
        ]
        ring, tolerance = np.concatenate([*thin, ring[-1:]]), 2 * tolerance
    return ring


def _crossings(ring: NDArray[np.float64]) -> float:
    """Estimate how often a closed ring, shape (n, 2), crosses itself, from some of its segments."""
    segments = np.stack([ring[:-1], ring[1:]], axis=1)
    tree = shapely.STRtree(shapely.linestrings(segments))
    found, chosen = 0, np.random.default_rng(0).permutation(len(segments))[:SAMPLED]
    enough = 2 * MOST_CROSSINGS * len(chosen) / len(segments)
    for segment in chosen.tolist():
        found += max(0, len(tree.query(tree.geometries[segment], predicate="intersects")) - 3)  # itself, neighbours
        if found > enough:
            break
    return found * len(segments) / len(chosen) / 2
