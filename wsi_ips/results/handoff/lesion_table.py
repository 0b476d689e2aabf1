"""Lesions as a CSV table, per slide and for all slides."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from wsi_ips.provenance import atomic_write_text
from wsi_ips.results.handoff.content import PackageContent, PackageFile
from wsi_ips.results.handoff.lesions import Lesion
from wsi_ips.results.handoff.maps import ScoreMaps

COLUMNS = (
    "slide_id",
    "lesion",
    "area_mm2",
    "longest_diameter_mm",
    "mean_score",
    "highest_score",
    "x_px0",
    "y_px0",
    "width_px0",
    "height_px0",
    "centroid_x_px0",
    "centroid_y_px0",
    "threshold",
    "model_id",
)


def write_table(folder: Path, content: PackageContent) -> list[PackageFile]:
    """Write ``<slide_id>_lesions.csv``."""
    path = _table(folder, content.maps.slide_id)
    atomic_write_text(path, lesion_table(content.maps, content.lesions))
    return [PackageFile(path, "all lesions: size, score, place")]


def join_tables(packages: Path, slide_ids: Sequence[str]) -> None:
    """Write ``lesions.csv`` with the lesions of all packages, slides in the given order."""
    paths = [_table(packages / slide_id, slide_id) for slide_id in slide_ids]
    tables = [path.read_text(encoding="utf-8") for path in paths if path.exists()]
    atomic_write_text(packages / "lesions.csv", joined(tables))


def lesion_table(maps: ScoreMaps, lesions: Sequence[Lesion]) -> str:
    """Return a CSV with a row per lesion, largest first; positions are level-0 pixels of the full slide."""
    return _csv([_row(maps, lesion) for lesion in lesions])


def joined(tables: Sequence[str]) -> str:
    """Return the tables of several slides as one."""
    return _csv([row for text in tables for row in csv.DictReader(io.StringIO(text))])


def _table(package: Path, slide_id: str) -> Path:
    return package / f"{slide_id}_lesions.csv"


def _row(maps: ScoreMaps, lesion: Lesion) -> dict[str, object]:
    x, y = lesion.centroid_px0
    left, top, width, height = lesion.box_px0
    values = (
        maps.slide_id,
        lesion.number,
        f"{lesion.area_um2 / 1e6:.6g}",
        f"{lesion.diameter_um / 1e3:.6g}",
        f"{lesion.mean:.6g}",
        f"{lesion.highest:.6g}",
        left,
        top,
        width,
        height,
        round(x),
        round(y),
        f"{maps.threshold:g}",
        maps.model_id,
    )
    return dict(zip(COLUMNS, values, strict=True))


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
