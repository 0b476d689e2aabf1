"""Lesions and tiles as GeoJSON that QuPath 0.5 to 0.8 imports, written as a stream.

Coordinates are pixels of the image as QuPath opens it, which is cropped to the slide's bounds: their corner is
subtracted. Measurements are finite numbers. The same input gives the same bytes.
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
from wsi_ips.results.handoff.lesions import GRAIN_PX0, Lesion, simplified
from wsi_ips.results.handoff.maps import ScoreMaps

MOST_LESIONS, MOST_TILES, LEAST_TILES = 500, 20_000, 12
"""Annotations make QuPath slow beyond some hundreds; on a slide without a positive tile its highest ones are shown."""
POSITIVE, NEGATIVE, UNSEEN = [200, 0, 0], [120, 120, 130], [90, 130, 200]
FEATURES_AT_A_TIME = 4_000
COMPRESSION = 5


def chosen_tiles(maps: ScoreMaps, *, every: bool) -> NDArray[np.int64]:
    """Tiles to show, highest first: all, else those from the threshold on, at most 20 000, at least the top twelve."""
    order = maps.best_first()
    if every:
        return order
    positive = int(np.count_nonzero(maps.score >= maps.threshold))
    return order[: min(MOST_TILES, max(LEAST_TILES, positive))]


def write_geojson(
    path: Path, maps: ScoreMaps, lesions: Sequence[Lesion], tiles: NDArray[np.integer], unseen: BaseGeometry | None
) -> None:
    """Write a ``.geojson.gz``.

    Parameters
    ----------
    path
        File to write; appears whole or not at all.
    maps
        The slide.
    lesions
        The first 500 become locked annotations.
    tiles
        Rows of the tiles that become objects of type ``tile``.
    unseen
        Tissue that was not analysed, level-0 pixels, one annotation; None where it is not known.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", COMPRESSION, raw, mtime=0) as packed,
    ):
        packed.write(b'{"type":"FeatureCollection","features":[\n')
        before = ""
        for text in _texts(maps, lesions, tiles, unseen):
            packed.write((before + text).encode("utf-8"))
            before = ",\n"
        packed.write(b"\n]}\n")


def _texts(
    maps: ScoreMaps, lesions: Sequence[Lesion], tiles: NDArray[np.integer], unseen: BaseGeometry | None
) -> Iterator[str]:
    """Features as JSON, some thousand at a time, a line each."""
    areas = [_lesion(lesion, maps) for lesion in lesions[:MOST_LESIONS]]
    if unseen is not None and not unseen.is_empty:
        areas.append(_unseen(unseen, maps))
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
    return _annotation(
        f"lesion/{lesion.number}",
        f"Lesion {lesion.number}",
        {"name": maps.class_name, "color": POSITIVE},
        simplified(lesion.region, maps),
        measured,
        maps,
    )


def _unseen(region: BaseGeometry, maps: ScoreMaps) -> dict[str, Any]:
    area = region.area * maps.mpp.x * maps.mpp.y / 1e6
    return _annotation(
        "unseen",
        "Not analysed",
        {"name": "Not analysed", "color": UNSEEN},
        simplified(region, maps),
        {"area mm²": area},
        maps,
    )


def _annotation(
    key: str,
    name: str,
    classification: dict[str, Any],
    region: BaseGeometry,
    measured: dict[str, float],
    maps: ScoreMaps,
) -> dict[str, Any]:
    """A locked annotation; ``region`` in level-0 pixels of the full slide."""
    polygons = [p for p in shapely.get_parts(region) if p.geom_type in ("Polygon", "MultiPolygon") and p.area > 0]
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
    """A line per tile, put together from text: a hundred thousand take a second."""
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


def _sides(start: NDArray[np.integer], length: float) -> tuple[list[str], list[str]]:
    """First and last coordinate of each tile along an axis as text; a grid has few different ones."""
    different, which = np.unique(start, return_inverse=True)
    first = np.array([f"{value}" for value in different.tolist()], object)
    last = np.array([f"{round(value + length, 2):.12g}" for value in different.tolist()], object)
    return first[which].tolist(), last[which].tolist()


def _uuid(maps: ScoreMaps, key: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"wsi-ips/{maps.slide_id}/{maps.fingerprint}/{key}"))


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
