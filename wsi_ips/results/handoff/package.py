"""The package of one slide: its files, each checked on the disk, and ``package.json`` that lists them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from shapely.geometry.base import BaseGeometry

from wsi_ips.provenance import atomic_folder, atomic_write_json, atomic_write_text
from wsi_ips.results.frame import RESEARCH
from wsi_ips.results.handoff import asap, checks, qupath
from wsi_ips.results.handoff.lesions import Lesion, find_lesions, not_analysed
from wsi_ips.results.handoff.maps import ScoreMaps
from wsi_ips.results.handoff.ome import write_ome_tiff
from wsi_ips.results.handoff.table import lesion_table

SCHEMA_VERSION = 1
MANIFEST = "package.json"
Format = Literal["overlays", "ome-tiff", "geojson", "asap", "lesions", "gallery"]


@dataclass(frozen=True)
class Material:
    """What a package holds besides the scores, each None or empty where there is none.

    Attributes
    ----------
    overlays
        Pictures with their sidecars beside them, drawn before; copied as they are.
    gallery
        Page of the highest and lowest tiles.
    tissue
        Tissue that was found, level-0 pixels.
    """

    overlays: Sequence[Path] = ()
    gallery: Image.Image | None = None
    tissue: BaseGeometry | None = None


def write_package(
    folder: Path, maps: ScoreMaps, material: Material, *, formats: Sequence[Format], every_tile: bool = False
) -> dict[str, Any]:
    """Write the package of a slide; it appears whole or not at all.

    Parameters
    ----------
    folder
        Where it goes; an older one is replaced.
    maps
        Scores of the slide, at least one tile.
    material
        Pictures and tissue.
    formats
        Which files to write.
    every_tile
        Whether the GeoJSON holds all tiles, not only those that matter.

    Returns
    -------
    dict
        Content of ``package.json``.

    Raises
    ------
    HandoffError
        A file, read back, does not agree with the scores.
    """
    lesions = find_lesions(maps)
    unseen = None if material.tissue is None else not_analysed(material.tissue, maps)
    with atomic_folder(folder) as temporary:
        work = _Writing(temporary, maps, lesions, material, unseen, every_tile)
        files = [entry for name in dict.fromkeys(formats) for entry in work.write(name)]
        facts = _facts(maps, lesions, material, unseen) | {"files": files}
        atomic_write_json(temporary / MANIFEST, facts)
    return facts


def stored_package(folder: Path) -> dict[str, Any] | None:
    """``package.json`` of a folder, None where there is none or a file of it is missing or of another size."""
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = all((folder / entry["name"]).stat().st_size == entry["bytes"] for entry in facts["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if whole and facts.get("schema_version") == SCHEMA_VERSION else None


@dataclass(frozen=True)
class _Writing:
    """A package at work: one method per format, each of which gives entries of ``files``."""

    folder: Path
    maps: ScoreMaps
    lesions: list[Lesion]
    material: Material
    unseen: BaseGeometry | None
    every_tile: bool

    def write(self, name: Format) -> list[dict[str, Any]]:
        by_format: dict[Format, Callable[[], list[dict[str, Any]]]] = {
            "overlays": self._overlays,
            "ome-tiff": self._ome_tiff,
            "geojson": self._geojson,
            "asap": self._asap,
            "lesions": self._table,
            "gallery": self._gallery,
        }
        return by_format[name]()

    def _path(self, ending: str) -> Path:
        return self.folder / f"{self.maps.slide_id}{ending}"

    def _overlays(self) -> list[dict[str, Any]]:
        entries = []
        for picture in self.material.overlays:
            sidecar = picture.with_suffix(".json")
            for source in (picture, sidecar):
                shutil.copyfile(source, self.folder / source.name)
            facts = json.loads(sidecar.read_text(encoding="utf-8"))
            check = {"correlation_with_tiles_read_again": facts.get("alignment")}
            entries.append(_entry(self.folder / picture.name, "picture of a map over the tissue", check))
            entries.append(_entry(self.folder / sidecar.name, "places the picture on level 0"))
        return entries

    def _ome_tiff(self) -> list[dict[str, Any]]:
        path = self._path("_maps.ome.tif")
        write_ome_tiff(path, self.maps)
        return [_entry(path, "maps as numbers, one pixel per cell", checks.check_ome_tiff(path, self.maps))]

    def _geojson(self) -> list[dict[str, Any]]:
        path, tiles = self._path(".geojson.gz"), qupath.chosen_tiles(self.maps, every=self.every_tile)
        qupath.write_geojson(path, self.maps, self.lesions, tiles, self.unseen)
        check = checks.check_geojson(path, self.maps, self.lesions, tiles)
        left_out = {
            "lesions": max(0, len(self.lesions) - qupath.MOST_LESIONS),
            "tiles": len(self.maps) - len(tiles),
        }
        return [_entry(path, "lesions and tiles for QuPath", check) | {"left_out": left_out}]

    def _asap(self) -> list[dict[str, Any]]:
        path = self._path("_lesions.xml")
        asap.write_lesions(path, self.lesions)
        return [_entry(path, "outlines of all lesions for ASAP", checks.check_asap(path, self.maps, self.lesions))]

    def _table(self) -> list[dict[str, Any]]:
        path = self._path("_lesions.csv")
        atomic_write_text(path, lesion_table(self.maps, self.lesions))
        return [_entry(path, "all lesions: size, score, place")]

    def _gallery(self) -> list[dict[str, Any]]:
        if self.material.gallery is None:
            return []
        path = self._path("_gallery.png")
        self.material.gallery.save(path, "PNG")
        return [_entry(path, "tiles with the highest and the lowest scores")]


def _entry(path: Path, what: str, check: dict[str, Any] | None = None) -> dict[str, Any]:
    data = path.read_bytes()
    entry = {"name": path.name, "what": what, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return entry | ({} if check is None else {"check": check})


def _facts(maps: ScoreMaps, lesions: list[Lesion], material: Material, unseen: BaseGeometry | None) -> dict[str, Any]:
    mm2 = maps.mpp.x * maps.mpp.y / 1e6
    tissue = material.tissue
    return {
        "schema_version": SCHEMA_VERSION,
        "note": RESEARCH,
        "slide_id": maps.slide_id,
        "model_id": maps.model_id,
        "fingerprint": maps.fingerprint,
        "class": maps.class_name,
        "slide_probability": maps.probability,
        "maps": {name: [float(values.min()), float(values.max())] for name, values in maps.scores.items()},
        "threshold": maps.threshold,
        "lesions": len(lesions),
        "lesion_area_mm2": round(sum(lesion.area_um2 for lesion in lesions) / 1e6, 6),
        "longest_diameter_mm": round(max((lesion.diameter_um for lesion in lesions), default=0.0) / 1e3, 6),
        "tiles": len(maps),
        "tissue_mm2": None if tissue is None else round(tissue.area * mm2, 6),
        "not_analysed_mm2": None if unseen is None else round(unseen.area * mm2, 6),
        "geometry": {
            "size_px0": list(maps.size_px0),
            "bounds_px0": list(maps.bounds),
            "mpp": list(maps.mpp),
            "grid_px0": list(maps.grid)[:2],
            "cell_px0": list(maps.stride_px0),
            "tile_px0": list(maps.footprint_px0),
        },
    }
