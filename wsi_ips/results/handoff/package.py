"""The hand-off package of one slide: its files, each read back and checked, and ``package.json``, which lists them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_ips.provenance import atomic_folder, atomic_write_json
from wsi_ips.results.handoff.content import Material, PackageContent, PackageFile
from wsi_ips.results.handoff.handoff_formats import HANDOFF_FORMATS
from wsi_ips.results.handoff.maps import ScoreMaps
from wsi_ips.results.picture_page import RESEARCH

SCHEMA_VERSION = 1
MANIFEST = "package.json"


def write_package(folder: Path, maps: ScoreMaps, material: Material, *, formats: Sequence[str]) -> dict[str, Any]:
    """Write the package of a slide with at least one tile; replace an older one atomically.

    ``formats`` are names in :data:`wsi_ips.results.handoff.handoff_formats.HANDOFF_FORMATS`. Returns ``package.json``.

    Raises
    ------
    HandoffError
        A file does not agree with the scores when it is read back.
    """
    content = PackageContent.of(maps, material)
    with atomic_folder(folder) as temporary:
        files = []
        for chosen in (HANDOFF_FORMATS[name] for name in dict.fromkeys(formats)):
            files += [_entry(file, chosen.check(file.path, content)) for file in chosen.write(temporary, content)]
        facts = _facts(content) | {"files": files}
        atomic_write_json(temporary / MANIFEST, facts)
    return facts


def stored_package(folder: Path) -> dict[str, Any] | None:
    """Return ``package.json`` of a folder, None where it or a file of it is missing or has another size."""
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = all((folder / entry["name"]).stat().st_size == entry["bytes"] for entry in facts["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if whole and facts.get("schema_version") == SCHEMA_VERSION else None


def _entry(file: PackageFile, check: Mapping[str, Any] | None) -> dict[str, Any]:
    data = file.path.read_bytes()
    entry = {"name": file.path.name, "what": file.what, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    entry |= {} if check is None else {"check": dict(check)}
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
        "geometry": {
            "size_px0": list(maps.size_px0),
            "bounds_px0": list(maps.bounds),
            "mpp": list(maps.mpp),
            "grid_px0": list(maps.grid)[:2],
            "cell_px0": list(maps.stride_px0),
            "tile_px0": list(maps.footprint_px0),
        },
    }
