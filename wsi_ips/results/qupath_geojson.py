"""Lesions and tiles as GeoJSON that QuPath 0.5 to 0.8 imports, written as a stream.

Coordinates are pixels of the image as QuPath opens it, cropped to the slide's bounds: their corner is subtracted.
Measurements are finite numbers. The same input gives the same bytes.
"""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import affinity
from shapely.geometry.base import BaseGeometry

from wsi_ips.provenance import atomic_path
from wsi_ips.results.handoff_package import MOST_VALUE_OFF, PackageContent, PackageFile, largest, require_agreement
from wsi_ips.results.lesions import GRAIN_PX0, Lesion
from wsi_ips.results.score_raster import ScoreMaps

# QuPath gets slow beyond some hundred annotations; a slide without positive tiles shows its highest tiles.
MOST_LESIONS, MOST_TILES, LEAST_TILES = 500, 20_000, 12
POSITIVE, NEGATIVE, UNSEEN = [200, 0, 0], [120, 120, 130], [90, 130, 200]
FEATURES_AT_A_TIME = 4_000
COMPRESSION = 5


def write_best(folder: Path, content: PackageContent) -> list[PackageFile]:
    """Write ``<slide_id>.geojson.gz`` with lesions and the tiles that :func:`chosen_tiles` chooses."""
    return [_written(folder / f"{content.maps.slide_id}.geojson.gz", content, chosen_tiles(content.maps))]


def write_all(folder: Path, content: PackageContent) -> list[PackageFile]:
    """Write ``<slide_id>_all_tiles.geojson.gz`` with lesions and all tiles."""
    return [_written(folder / f"{content.maps.slide_id}_all_tiles.geojson.gz", content, content.maps.best_first())]


def chosen_tiles(maps: ScoreMaps) -> NDArray[np.int64]:
    """Return the tiles from the threshold on, highest first; at most 20 000, at least the top twelve."""
    positive = int(np.count_nonzero(maps.score >= maps.threshold))
    return maps.best_first()[: min(MOST_TILES, max(LEAST_TILES, positive))]


def write_geojson(path: Path, content: PackageContent, tiles: NDArray[np.integer]) -> None:
    """Write the first 500 lesions and the tissue that was not analysed as annotations, and tiles (rows) as tiles."""
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", COMPRESSION, raw, mtime=0) as packed,
    ):
        packed.write(b'{"type":"FeatureCollection","features":[\n')
        before = ""
        for text in _texts(content, tiles):
            packed.write((before + text).encode("utf-8"))
            before = ",\n"
        packed.write(b"\n]}\n")


def check_geojson(path: Path, content: PackageContent, tiles: NDArray[np.integer]) -> dict[str, Any]:
    """Compare corners and scores of all tiles in a file, and the outlines of its lesions; raises HandoffError."""
    maps = content.maps
    features = json.loads(gzip.decompress(path.read_bytes()))["features"]
    shown = [f for f in features if f["properties"]["objectType"] == "tile"]
    rows = np.array([f["properties"]["measurements"]["tile number"] for f in shown], int)
    boxes = np.array([f["geometry"]["coordinates"][0] for f in shown], float).reshape(-1, 5, 2)
    wanted = np.stack([maps.x, maps.y], axis=1)[rows] - np.array(maps.bounds_origin)
    far = wanted + np.array(maps.footprint_px0)
    offset = max(largest(boxes[:, 0] - wanted), largest(boxes[:, 2] - far))
    measured = [f["properties"]["measurements"] for f in shown]
    difference = max(
        largest(np.array([m[f"{name} (tile)"] for m in measured], float) - values[rows])
        for name, values in maps.scores.items()
    )
    drawn = [f for f in features if f["properties"]["objectType"] == "annotation"]
    outlines = [f["geometry"] for f in drawn if f["properties"]["classification"]["name"] == maps.class_name]
    near = _all_near(outlines, content.lesions[:MOST_LESIONS], maps)
    complete = set(rows.tolist()) == set(tiles.tolist())
    found: dict[str, Any] = {"tiles": len(rows), "lesions": len(outlines)}
    found |= {"largest_offset_px0": offset, "largest_difference": difference}
    agrees = near and complete and offset <= 0.02 and difference <= MOST_VALUE_OFF
    return require_agreement(path, maps, found, agrees=agrees)


def _written(path: Path, content: PackageContent, tiles: NDArray[np.integer]) -> PackageFile:
    write_geojson(path, content, tiles)
    left_out = {"lesions": max(0, len(content.lesions) - MOST_LESIONS), "tiles": len(content.maps) - len(tiles)}
    return PackageFile(path, "lesions and tiles for QuPath", check_geojson(path, content, tiles), left_out)


def _texts(content: PackageContent, tiles: NDArray[np.integer]) -> Iterator[str]:
    """Yield features as JSON, one per line, some thousand at a time."""
    maps, unseen = content.maps, content.unseen
    areas = [_lesion(lesion, maps) for lesion in content.lesions[:MOST_LESIONS]]
    if unseen is not None and not unseen.is_empty:
        areas.append(_unseen(unseen, content))
    if areas:
        yield ",\n".join(_json(area) for area in areas)
    lines = _tiles(maps, tiles)
    for start in range(0, len(tiles), FEATURES_AT_A_TIME):
        yield ",\n".join(next(lines) for _ in range(min(FEATURES_AT_A_TIME, len(tiles) - start)))


def _lesion(lesion: Lesion, maps: ScoreMaps) -> dict[str, Any]:
    measured = {
        "area mm²": lesion.area_um2 / 1e6,
        "longest diameter mm": lesion.diameter_um / 1e3,
        "mean score": lesion.mean,
        "highest score": lesion.highest,
    }
    identity, classification = f"lesion/{lesion.number}", {"name": maps.class_name, "color": POSITIVE}
    return _annotation(identity, f"Lesion {lesion.number}", classification, lesion.region, measured, maps)


def _unseen(region: BaseGeometry, content: PackageContent) -> dict[str, Any]:
    maps, measured = content.maps, content.material.unseen
    areas = {"area mm²": region.area * maps.mpp.x * maps.mpp.y / 1e6}
    if measured is not None:  # as tiling measured it
        areas = {"area mm²": measured.area_mm2, **{f"{name} mm²": area for name, area in measured.mm2.items()}}
    classification = {"name": "Not analysed", "color": UNSEEN}
    return _annotation("unseen", "Not analysed", classification, region, areas, maps)


def _annotation(
    key: str,
    name: str,
    classification: dict[str, Any],
    region: BaseGeometry,
    measured: dict[str, float],
    maps: ScoreMaps,
) -> dict[str, Any]:
    """Return a locked annotation; ``region`` in level-0 pixels of the full slide."""
    parts = shapely.get_parts(shapely.make_valid(shapely.simplify(region, maps.quarter_tile_px0)))
    polygons = [part for part in parts if part.geom_type in ("Polygon", "MultiPolygon") and part.area > 0]
    shifted = affinity.translate(shapely.union_all(polygons), -maps.bounds.x, -maps.bounds.y)
    return {
        "type": "Feature",
        "id": _uuid(maps, key),
        "geometry": shapely.geometry.mapping(shapely.set_precision(shifted, GRAIN_PX0)),
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": classification,
            "isLocked": True,
            "measurements": {name: float(f"{value:.6g}") for name, value in measured.items()},
        },
    }


def _tiles(maps: ScoreMaps, tiles: NDArray[np.integer]) -> Iterator[str]:
    """Yield a line per tile, assembled as text: a hundred thousand take a second."""
    lefts, rights = _sides(maps.x[tiles] - maps.bounds.x, maps.footprint_px0.x)
    tops, bottoms = _sides(maps.y[tiles] - maps.bounds.y, maps.footprint_px0.y)
    names = [_json(f"{name} (tile)") for name in maps.scores]
    values = [[f"{value:.6g}" for value in maps.scores[name][tiles].tolist()] for name in maps.scores]
    measured = [
        ",".join(f"{name}:{value}" for name, value in zip(names, row, strict=True)) for row in zip(*values, strict=True)
    ]
    classes = {
        True: _json({"name": maps.class_name, "color": POSITIVE}),
        False: _json({"name": f"below {maps.threshold:g}", "color": NEGATIVE}),
    }
    above = (maps.score[tiles] >= maps.threshold).tolist()
    for row, left, right, top, bottom, values_of, is_above in zip(
        tiles.tolist(), lefts, rights, tops, bottoms, measured, above, strict=True
    ):
        yield (
            f'{{"type":"Feature","id":"{_uuid(maps, f"tile/{row}")}","geometry":{{"type":"Polygon","coordinates":'
            f"[[[{left},{top}],[{right},{top}],[{right},{bottom}],[{left},{bottom}],[{left},{top}]]]}},"
            f'"properties":{{"objectType":"tile","classification":{classes[is_above]},'
            f'"measurements":{{{values_of},"tile number":{row}}}}}}}'
        )


def _all_near(outlines: Sequence[dict[str, Any]], lesions: Sequence[Lesion], maps: ScoreMaps) -> bool:
    """Return whether each outline lies within a quarter of a tile of its lesion, and the other way round."""
    if len(outlines) != len(lesions):
        return False
    found = [affinity.translate(shapely.geometry.shape(outline), *maps.bounds_origin) for outline in outlines]
    return all(
        _within(a, b, maps.quarter_tile_px0)
        for lesion, outline in zip(lesions, found, strict=True)
        for a, b in ((lesion.region, outline), (outline, lesion.region))
    )


def _within(inner: BaseGeometry, outer: BaseGeometry, distance: float) -> bool:
    """Return whether every point of a region is within a distance of another, apart from rounding."""
    rest = shapely.difference(inner, outer)
    return bool(rest.area == 0 or shapely.covers(shapely.buffer(outer, distance * 1.1, join_style="mitre"), rest))


def _sides(start: NDArray[np.integer], length: float) -> tuple[list[str], list[str]]:
    """Return the first and last coordinate of each tile along an axis as text; a grid has few different ones."""
    different, which = np.unique(start, return_inverse=True)
    first = np.array([f"{value}" for value in different.tolist()], object)
    last = np.array([f"{round(value + length, 2):.12g}" for value in different.tolist()], object)
    return first[which].tolist(), last[which].tolist()


def _uuid(maps: ScoreMaps, key: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"wsi-ips/{maps.slide_id}/{maps.fingerprint}/{key}"))


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
