"""The hand-off package of one slide: its content, its files, and ``package.json``, which lists them.

:data:`wsi_ips.results.handoff_formats.HANDOFF_FORMATS` lists the formats. All are written from
:class:`wsi_ips.results.score_raster.ScoreMaps`, whichever model made the scores; each file is read back and checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_ips.errors import HandoffError
from wsi_ips.provenance import atomic_folder, atomic_write_json, parse_object
from wsi_ips.results.handoff_formats import HANDOFF_FORMATS
from wsi_ips.results.lesions import Lesion, covered_region, find_lesions
from wsi_ips.results.overlay import RESEARCH
from wsi_ips.results.score_raster import ScoreMaps
from wsi_ips.slides import RGB
from wsi_ips.tiles.recall import NotAnalysed

SCHEMA_VERSION = 1
MANIFEST = "package.json"
MOST_VALUE_OFF = 1e-5  # largest difference of a score that is read back: files hold six digits


@dataclass(frozen=True)
class Material:
    """Content of a package besides scores; each part may be missing."""

    overlays: Sequence[Path] = ()  # pictures that are already drawn, with their sidecars beside them
    # pixels of tiles, given their rows, shape (k, h, w, 3); for the gallery
    read_tiles: Callable[[NDArray[np.int32]], RGB] | None = None
    readable: NDArray[np.int32] | None = None  # rows of the tiles that can be read; None = all
    tissue: BaseGeometry | None = None  # tissue that was found, level-0 pixels
    unseen: NotAnalysed | None = None  # tissue that no tile covers, as tiling measured it


@dataclass(frozen=True)
class PackageContent:
    """Everything that the formats write their files from."""

    maps: ScoreMaps
    lesions: Sequence[Lesion]  # lesions on the first map, largest first
    unseen: BaseGeometry | None  # tissue that no tile covers, level-0 pixels; None where tissue is not known
    material: Material

    @classmethod
    def of(cls, maps: ScoreMaps, material: Material) -> Self:
        """Find lesions and tissue without tiles."""
        tissue = material.tissue
        unseen = None if tissue is None else shapely.difference(tissue, covered_region(maps.raster))
        return cls(maps, find_lesions(maps), unseen, material)


class PackageFile(NamedTuple):
    """A file of a package."""

    path: Path
    what: str  # what it is, for ``package.json``
    check: Mapping[str, Any] | None = None  # figures of its comparison with the scores
    left_out: Mapping[str, int] | None = None  # number of objects beyond what its program can open


def write_package(folder: Path, maps: ScoreMaps, material: Material, *, formats: Sequence[str]) -> dict[str, Any]:
    """Write the package of a slide with at least one tile and return ``package.json``; raises HandoffError."""
    content = PackageContent.of(maps, material)
    with atomic_folder(folder) as temporary:
        files = []
        for name in dict.fromkeys(formats):
            files += [_entry(file) for file in HANDOFF_FORMATS[name].write(temporary, content)]
        facts = _facts(content) | {"files": files}
        atomic_write_json(temporary / MANIFEST, facts)
    return facts


def stored_package(folder: Path) -> dict[str, Any] | None:
    """Return ``package.json`` of a folder, None where it or a file of it is missing or has another size."""
    try:
        facts = parse_object((folder / MANIFEST).read_bytes())
        whole = all((folder / entry["name"]).stat().st_size == entry["bytes"] for entry in facts["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if whole and facts.get("schema_version") == SCHEMA_VERSION else None


def require_agreement(path: Path, maps: ScoreMaps, found: dict[str, Any], *, agrees: bool) -> dict[str, Any]:
    """Return the figures of a check, rounded; raises HandoffError where the file does not agree with the scores."""
    if not agrees:
        figures = ", ".join(f"{name} {value}" for name, value in found.items())
        raise HandoffError(
            f"slide {maps.slide_id}: {path.name} does not match the scores it was made from ({figures}); it is not "
            "handed over: report this with the recipe"
        )
    return {name: round(value, 9) if isinstance(value, float) else value for name, value in found.items()}


def largest(values: NDArray[np.floating]) -> float:
    """Return the largest absolute value, infinity where one is not finite, 0 where there is none."""
    return float(np.abs(values).max(initial=0.0)) if np.isfinite(values).all() else float("inf")


def _entry(file: PackageFile) -> dict[str, Any]:
    data = file.path.read_bytes()
    entry = {"name": file.path.name, "what": file.what, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    entry |= {} if file.check is None else {"check": dict(file.check)}
    return entry | ({} if file.left_out is None else {"left_out": dict(file.left_out)})


def _facts(content: PackageContent) -> dict[str, Any]:
    maps, lesions, unseen, tissue = content.maps, content.lesions, content.unseen, content.material.tissue
    mm2 = maps.mpp.x * maps.mpp.y / 1e6
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
        **(content.material.unseen.facts if content.material.unseen else {}),
        "geometry": {
            "size_px0": list(maps.size_px0),
            "bounds_px0": list(maps.bounds),
            "mpp": list(maps.mpp),
            "grid_px0": list(maps.grid)[:2],
            "cell_px0": list(maps.stride_px0),
            "tile_px0": list(maps.footprint_px0),
        },
    }
