"""Contact sheet of the tissue and table of the lesions, from the files that tiling wrote for each slide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsi_ips.evaluation.summary import not_analysed_texts
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.slide_states import StateTable, not_analysed_of
from wsi_ips.provenance import atomic_write_text
from wsi_ips.results.contact_sheet import SheetEntry, page_name, recall_figures, render_sheet
from wsi_ips.tables import table_text

LESION_COLUMNS = [
    "slide_id",
    "x_px0",
    "y_px0",
    "area_um2",
    "diameter_um",
    "size_class",
    "in_tissue",
    "in_tiles",
    "lost_to",
]


def sheet_stage(title: str, records: Sequence[SlideRecord], states: StateTable) -> Path:
    """Write the contact sheet and ``tissue_recall.csv``; returns the page to open."""
    entries, folder = sheet_entries(records, states), states.folder
    figures = not_analysed_of(states)
    share = figures["share_not_analysed"]
    pages = render_sheet(title, entries, "" if share is None else "{} ({})".format(*not_analysed_texts(figures)))
    for name, text in pages.items():
        atomic_write_text(folder.tissue / name, text)
    number = len(pages) + 1
    while (old := folder.tissue / page_name(number)).exists():  # left by a larger cohort
        old.unlink()
        number += 1
    atomic_write_text(folder.tissue_recall, _lesion_table(entries))
    return folder.tissue / page_name(1)


def sheet_entries(records: Sequence[SlideRecord], states: StateTable) -> list[SheetEntry]:
    """Collect state, preview and facts of slides, also of those that failed because their tumour lies in no tile."""
    entries, folder = [], states.folder
    for record in records:
        state = states[record.slide_id]
        stored = folder.tissue / f"{record.slide_id}.json"
        facts = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
        if not state.is_tiled and (not state.reason or facts.get("lost_tumour") != state.reason):
            facts = {}  # of an earlier attempt
        picture = folder.tissue / f"{record.slide_id}.jpg"
        preview = picture.read_bytes() if facts and picture.exists() else None
        entries.append(SheetEntry(record.slide_id, state.state, state.reason, preview, facts))
    return entries


def recall_summary(entries: Sequence[SheetEntry]) -> dict[str, Any]:
    """Return the lesion figures for the summary of a run; recalls are None if nothing is annotated."""
    figures = recall_figures(entries)
    known = figures["lesions"] > 0
    return {
        "lesions": figures["lesions"],
        "lesions_lost": figures["lost"],
        "tissue_recall": round(figures["in_tissue"], 5) if known else None,
        "tile_recall": round(figures["in_tiles"], 5) if known else None,
    }


def _lesion_table(entries: Sequence[SheetEntry]) -> str:
    """Return a CSV with a row per lesion; ``in_tissue`` and ``in_tiles`` are shares of its area."""
    rows = [
        {"slide_id": entry.slide_id, **{name: round(v, 4) if isinstance(v, float) else v for name, v in lesion.items()}}
        for entry in entries
        for lesion in entry.lesions
    ]
    return table_text(LESION_COLUMNS, ([row.get(name) for name in LESION_COLUMNS] for row in rows))
