"""Lesions as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

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


def lesion_table(maps: ScoreMaps, lesions: Sequence[Lesion]) -> str:
    """CSV, a row per lesion, largest first; positions are level-0 pixels of the full slide, without any offset."""
    return _csv(COLUMNS, [_row(maps, lesion) for lesion in lesions])


def joined(tables: Sequence[str]) -> str:
    """Tables of several slides as one."""
    rows = [row for text in tables for row in csv.DictReader(io.StringIO(text))]
    return _csv(COLUMNS, rows)


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


def _csv(columns: Sequence[str], rows: Sequence[dict[str, object]] | Sequence[dict[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
