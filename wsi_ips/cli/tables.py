"""What commands print at their end."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from wsi_ips.cli.console import out

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wsi_ips.model.presets import Preset
    from wsi_ips.pipeline.stages import Outcome
    from wsi_ips.pipeline.states import SlideState, State
    from wsi_ips.pipeline.tiling.verify import Mismatch

COLOURS: dict[State, str] = {"ok": "green", "empty": "yellow", "failed": "red", "pending": "dim"}


MOST_ROWS = 100


def print_status(states: Iterable[SlideState], *, only_problems: bool = False) -> None:
    """Table of states and a line of counts; of a large cohort only what is not ok, and of that a part."""
    rows = list(states)
    wanted = [row for row in rows if row.state != "ok"] if only_problems or len(rows) > MOST_ROWS else rows
    shown = sorted(wanted, key=lambda row: row.state == "pending")[:MOST_ROWS] if len(wanted) > MOST_ROWS else wanted
    if shown:
        table = Table("slide", "state", "stage", "tiles", "tissue mm²", box=None, pad_edge=False)
        for row in shown:
            colour = COLOURS[row.state]
            table.add_row(
                escape(row.slide_id),
                f"[{colour}]{row.state}[/]",
                row.stage,
                "" if row.tiles is None else str(row.tiles),
                "" if row.tissue_mm2 is None else f"{row.tissue_mm2:.2f}",
            )
        out.print(table)
        _print_reasons([(row.slide_id, row.reason) for row in shown])
    if len(wanted) > len(shown):
        out.print(f"... and {len(wanted) - len(shown)} more; all of them are in slides.csv")
    counts = Counter(row.state for row in rows)
    text = ", ".join(f"[{colour}]{counts[s]} {s}[/]" for s, colour in COLOURS.items() if counts[s])
    out.print(f"{len(rows)} slides: {text}")


def _print_reasons(reasons: Sequence[tuple[str, str]]) -> None:
    """One paragraph per slide with a reason: a column of a table would be a few letters wide."""
    for slide_id, reason in reasons:
        if reason:
            out.print(f"[bold]{escape(slide_id)}[/]: {escape(reason)}", soft_wrap=True)


def print_explanation(lines: Sequence[tuple[str, str]]) -> None:
    """Names and values, one below the other."""
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        out.print(f"[bold]{name:<{width}}[/]  {escape(value)}", soft_wrap=True)


def print_mismatches(checked: int, mismatches: Sequence[Mismatch]) -> None:
    """What `verify` found, and a line of counts."""
    _print_reasons([(entry.slide_id, entry.what) for entry in mismatches])
    found = f"[red]{len(mismatches)} mismatches[/]" if mismatches else "[green]all as it should be[/]"
    out.print(f"{checked} slides verified: {found}")


def print_encoders(presets: Sequence[Preset]) -> None:
    """Print the table of presets."""
    from wsi_ips.model.presets import scale_text

    table = Table("preset", "width", "µm/px", "pooling", "access", "commercial", "licence", box=None, pad_edge=False)
    table.columns[0].no_wrap = table.columns[-1].no_wrap = True
    for preset in presets:
        name = escape(preset.key)
        table.add_row(
            name,
            str(preset.width),
            scale_text(preset),
            preset.pooling,
            {True: "gated", False: "open", None: "card"}[preset.gated],
            {True: "[green]yes[/]", False: "[red]no[/]", None: "card"}[preset.commercial],
            escape(preset.licence),
        )
    out.print(table)
    out.print(f"{len(presets)} presets: `model.encoder: preset:NAME`; card = read the model card")


def print_summary(outcome: Outcome) -> None:
    """The figures of a run and the page to open."""
    print_status(outcome.states, only_problems=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in outcome.lines():
        table.add_row(f"[bold]{escape(name)}[/]", escape(value))
    out.print(table)
    out.print(f"[bold]report[/]  {escape(str(outcome.report))}", soft_wrap=True)
