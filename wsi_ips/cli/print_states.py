"""What commands print about the slides of a run: states, one slide, mismatches, imported and exported tiles."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from wsi_ips.cli.console import few, out, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from wsi_ips.pipeline.clam_trident import ExportedTiles, ImportedTiles
    from wsi_ips.pipeline.slide_states import SlideState, State
    from wsi_ips.pipeline.verify import Verified

COLOURS: dict[State, str] = {"ok": "green", "empty": "yellow", "failed": "red", "pending": "dim"}
MOST_ROWS = 100


def print_status(states: Iterable[SlideState], *, only_problems: bool = False) -> None:
    """Print a table of states and a line of counts; of a large cohort only what is not ok, and not all of that."""
    rows = list(states)
    wanted = [row for row in rows if row.state != "ok"] if only_problems or len(rows) > MOST_ROWS else rows
    shown = sorted(wanted, key=lambda row: row.state == "pending")[:MOST_ROWS] if len(wanted) > MOST_ROWS else wanted
    if shown:
        table = Table("slide", "state", "stage", "tiles", "tissue mm²", box=None, pad_edge=False)
        for row in shown:
            table.add_row(
                escape(row.slide_id),
                f"[{COLOURS[row.state]}]{row.state}[/]",
                row.stage,
                "" if row.tiles is None else str(row.tiles),
                "" if row.tissue_mm2 is None else f"{row.tissue_mm2:.2f}",
            )
        out.print(table)
        print_reasons([(row.slide_id, row.reason) for row in shown])
    if len(wanted) > len(shown):
        out.print(f"... and {len(wanted) - len(shown)} more; slides.csv list all of them")
    counts = Counter(row.state for row in rows)
    text = ", ".join(f"[{colour}]{counts[s]} {s}[/]" for s, colour in COLOURS.items() if counts[s])
    out.print(f"{len(rows)} slides: {text}")


def print_reasons(reasons: Sequence[tuple[str, str]]) -> None:
    """Print a paragraph per slide with a reason; a column of a table would be a few letters wide."""
    for slide_id, reason in reasons:
        if reason:
            out.print(f"[bold]{escape(slide_id)}[/]: {escape(reason)}", soft_wrap=True)


def print_explanation(lines: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair per line."""
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        out.print(f"[bold]{name:<{width}}[/]  {escape(value)}", soft_wrap=True)


def print_mismatches(tiles: Verified, predictions: Verified) -> int:
    """Print what a verification found, and counts; returns the number of mismatches."""
    mismatches = [*tiles.mismatches, *predictions.mismatches]
    print_reasons([(entry.slide_id, entry.what) for entry in mismatches])
    found = f"[red]{len(mismatches)} mismatches[/]" if mismatches else "[green]no mismatch[/]"
    out.print(f"{tiles.checked} slides verified: {found}")
    if predictions.checked:
        largest = f"largest difference {predictions.off:.1g}"
        out.print(f"{predictions.checked} predictions computed again from their stored tiles: {largest}")
    return len(mismatches)


def print_imported(
    states: Iterable[SlideState], imported: ImportedTiles, folder: Path, features: Path | None = None
) -> None:
    """Print which tool's tiles each slide has, what was refused, and how to keep them."""
    rows = list(states)
    for state in rows:
        if state.slide_id in imported.methods and state.state == "ok":
            say("green", state.slide_id, imported.methods[state.slide_id])
        elif state.state != "pending":
            say("red" if state.state == "failed" else "yellow", state.slide_id, f"{state.state}: {state.reason}")
    for path in imported.unknown:
        say("yellow", str(path), "belongs to no slide of the manifest")
    failed = sum(state.state == "failed" for state in rows)
    out.print(f"{len(rows)} slides: [green]{len(rows) - failed} imported[/], {failed} failed")
    lines = [f"to keep these tiles, write into the recipe:  tiles: {{imported: {folder}}}"]
    if features is not None:
        lines.append(f"and these features:  features: {{imported: {features}}}  and  model: {{input: features}}")
    for line in lines:
        out.print(escape(line), soft_wrap=True)


def print_exported(outcome: ExportedTiles, to: Path) -> None:
    """Print where the exported tiles are, and what was refused."""
    nothing = [name for name, path in outcome.written.items() if path is None]
    if nothing:
        say("yellow", "no tile, so no file", few(nothing))
    for path in outcome.tables:
        out.print(f"table {escape(str(path))}", soft_wrap=True)
    print_refused(sum(path is not None for path in outcome.written.values()), outcome.refused, to)


def print_refused(written: int, refused: Mapping[str, str], folder: Path) -> None:
    """Print the slides that could not be exported, and counts."""
    for name, reason in refused.items():
        say("red", name, reason)
    out.print(f"{written} slides written to {escape(str(folder))}, {len(refused)} slides refused", soft_wrap=True)
