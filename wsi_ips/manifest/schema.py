"""The columns of a manifest as a JSON schema, for tools that check or make manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsi_ips.manifest.record import FORBIDDEN, MAX_NAME_BYTES, REQUIRED, SlideRecord
from wsi_ips.provenance import atomic_write_json

NUMBER = r"[0-9]*\.?[0-9]+"
PAIR = rf"(?![0-9]+,[0-9]+$){NUMBER}[,;]{NUMBER}"
NARROWER: dict[str, dict[str, Any]] = {
    "slide_id": {
        "minLength": 1,
        "maxLength": MAX_NAME_BYTES,
        "pattern": r"^(?![.]|__)[^" + FORBIDDEN[1:-1] + r"]*[^. " + FORBIDDEN[1:-1] + r"]$",
    },
    "path": {"minLength": 1},
    "split": {"enum": ["train", "val", "test", ""]},
    "tissue_method": {"enum": ["auto", "otsu", "adaptive", "stain", ""]},
    "tissue_min_saturation": {"pattern": r"^(0(\.[0-9]+)?|1(\.0+)?|\.[0-9]+)?$"},
    "mpp": {"pattern": rf"^({NUMBER}|{PAIR})?$"},
}
"""What a column's text is narrowed to, beyond being text."""


def manifest_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a row: every cell is text, an empty one is ``""``."""
    properties = {
        name: {"type": "string", "description": info.description, **NARROWER.get(name, {})}
        for name, info in SlideRecord.model_fields.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A row of a wsi-ips manifest",
        "type": "object",
        "properties": properties,
        "required": list(REQUIRED),
        "additionalProperties": True,
    }


def write_schema(path: Path | str) -> None:
    """Write :func:`manifest_schema` to a file."""
    atomic_write_json(Path(path), manifest_schema())
