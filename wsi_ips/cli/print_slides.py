"""Print checks, splits, encoders, states and exports; fits 80 columns if the names do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from wsi_ips.cli.console import FEW, out, plain_table, put, say
from wsi_ips.errors import few

if TYPE_CHECKING:
    from wsi_ips.model.encoders import Preset
    from wsi_ips.pipeline.check_machine import Finding, Verdict
    from wsi_ips.pipeline.check_slides import CheckReport
    from wsi_ips.pipeline.export_run import Exported
    from wsi_ips.pipeline.slide_states import SlideState, State
    from wsi_ips.pipeline.split_cohort import SplitOutcome
    from wsi_ips.pipeline.verify import Verified
    from wsi_ips.training.cost import TrainingCost

BAR = 24
VERDICTS: dict[Verdict, str] = {"ok": "green", "note": "yellow", "wrong": "red"}


def print_findings(findings: Sequence[Finding], *, only_problems: bool) -> None:
    """Print the check of the machine, with what to do."""
    shown = [f for f in findings if f.verdict != "ok"] if only_problems else findings
    if not shown:
        return
    table = plain_table()
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in shown:
        advice = f"\n[bold]-> {escape(finding.advice)}[/]" if finding.advice else ""
        colour = VERDICTS[finding.verdict]
        table.add_row(f"[{colour}]{finding.verdict}[/]", finding.what, escape(finding.found) + advice)
    out.print(table)
    wrong = sum(finding.verdict == "wrong" for finding in findings)
    out.print(f"[red]{wrong} wrong[/]" if wrong else "[green]this machine has everything it needs[/]")


def print_report(report: CheckReport) -> None:
    """Print headers, scales, decoders, copies, files in no row, expected tiles, remarks, problems and counts."""
    from wsi_ips.pipeline.check_slides import TISSUE_SHARE

    table = plain_table("slide", "by", "level 0 px", "lv", "µm/px", "MB", "tiles")
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.no_wrap = True
    for column in table.columns[3:]:
        column.justify = "right"
    for row in report.rows:
        name, info = escape(row.slide_id), row.info
        table.add_row(
            f"[red]{name}[/]" if row.problem else name,
            info.pixels_by.partition(":")[0] if info else "",
            f"{info.size_px0.width} x {info.size_px0.height}" if info else "",
            str(len(info.level_sizes)) if info else "",
            f"{info.mpp.x:.4g}" if info and info.mpp else "",
            f"{row.file_bytes / 1e6:.1f}" if row.file_bytes else "",
            "" if row.tiles is None else str(row.tiles),
        )
    out.print(table)
    _print_scales(report)
    _print_decoders(report)
    for group in report.copies:
        say("yellow", "copies of one slide", ", ".join(group) + ": keep one, or keep them in one split")
    _print_unlisted(report)
    if report.tiles:
        of = f"{report.tiling.patch_px} px at {report.tiling.mpp:g} µm/px"
        out.print(f"expected: {report.tiles} tiles of {of} [dim](if {TISSUE_SHARE:.0%} of the area is tissue)[/]")
    for row in report.rows:
        for remark in row.remarks:
            say("yellow", row.slide_id, remark)
    print_refused({row.slide_id: row.problem for row in report.rows if row.problem})
    bad = f", [red]{report.unusable} not[/]" if report.unusable else ""
    out.print(f"{len(report.rows)} slides: [green]{len(report.rows) - report.unusable} usable[/]{bad}")


def print_cost(cost: TrainingCost) -> None:
    """Print the start of a training and why, its steps and tiles, and the hours on this machine."""
    start = cost.start
    out.print(f"training starts on `{start.name}` [dim]({escape(start.why)})[/]")
    out.print(
        f"steps: {cost.start_steps} of the start, {cost.steps} with selection; tiles: {cost.embedded:,} embedded for "
        f"the start, {cost.scanned:,} scored, {cost.learned:,} learned from; about {cost.hours:.2g} hours on "
        f"{cost.device} ({cost.tiles_per_s:.0f} tiles/s)"
    )


def print_splits(outcome: SplitOutcome, path: Path) -> None:
    """Print the slides per split and stratum, what was kept together, and what was left out."""
    strata = sorted({outcome.strata[name] for name in outcome.splits.folds[0]})
    table = plain_table("fold", "split", "slides", *(escape(s or "(empty)") for s in strata))
    for number, fold in enumerate(outcome.splits.folds):
        for split in ("train", "val", "test"):
            counts = Counter(outcome.strata[name] for name, where in fold.items() if where == split)
            label = str(number) if split == "train" else ""
            table.add_row(label, split, str(counts.total()), *(str(counts[s]) for s in strata))
    out.print(table)
    for pair in outcome.related[:FEW]:
        say("yellow", "kept together", str(pair))
    if len(outcome.related) > FEW:
        out.print(f"and {len(outcome.related) - FEW} more pairs")
    for name, reason in outcome.unseen.items():
        say("yellow", f"{name} was not compared", reason)
    if outcome.left_out:
        say("yellow", "in no split, without a value to stratify by", few(outcome.left_out))
    if outcome.without_patient:
        out.print(f"{outcome.without_patient} slides without `patient_id`: each counts as a separate patient")
    where = f"[bold]{escape(str(path))}[/]  hash {outcome.splits.hash}"
    put(f"{where}; name it in the recipe: `split.file`")


def print_encoders(presets: Sequence[Preset]) -> None:
    """Print a table of presets."""
    from wsi_ips.model.encoders import scale_text

    table = plain_table("preset", "width", "µm/px", "pooling", "access", "commercial", "licence")
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
    put(
        f"{len(presets)} presets: `model.encoder: preset:NAME`. The licence applies to the weights; "
        "card = read the model card, which is authoritative"
    )


def _print_scales(report: CheckReport) -> None:
    bins = report.scales
    most = max((count for _, _, count in bins), default=1)
    for low, high, count in bins:
        text = f"{low:.4g}" if high / low < 1.001 else f"{low:.4g} to {high:.4g}"
        out.print(f"{text:>16} µm/px  {'█' * max(1, round(BAR * count / most))} {count}")
    if report.mpp_sources:
        sources = (f"{escape(name)} ({count})" for name, count in report.mpp_sources.most_common())
        out.print("scale from " + ", ".join(sources))


def _print_decoders(report: CheckReport) -> None:
    """Print what decodes the pixels and why, one line for all slides that share it."""
    slides: dict[str, list[str]] = {}
    for row in report.rows:
        if row.info:
            slides.setdefault(row.info.pixels_by, []).append(row.slide_id)
    for how, names in sorted(slides.items(), key=lambda pair: -len(pair[1])):
        put(f"pixels by {escape(how)} [dim]({len(names)}: {escape(few(names))})[/]")


def _print_unlisted(report: CheckReport) -> None:
    for path in report.unlisted.slides:
        say("yellow", "in no row, but named like a slide", str(path))
    others = report.unlisted.others
    if others:
        kinds = Counter(path.suffix.lower() or "without suffix" for path in others)
        text = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        say("yellow", f"{len(others)} other files in no row", f"{text} ({few([path.name for path in others])})")


COLOURS: dict[State, str] = {"ok": "green", "empty": "yellow", "unsuited": "yellow", "failed": "red", "pending": "dim"}
MOST_ROWS = 100


def print_status(states: Iterable[SlideState], *, only_problems: bool = False) -> None:
    """Print a table of states and a line of counts; for a large cohort, only some of the slides that are not ok."""
    rows = list(states)
    wanted = [row for row in rows if row.state != "ok"] if only_problems or len(rows) > MOST_ROWS else rows
    shown = sorted(wanted, key=lambda row: row.state == "pending")[:MOST_ROWS] if len(wanted) > MOST_ROWS else wanted
    if shown:
        table = plain_table("slide", "state", "stage", "tiles", "tissue mm²", "not analysed")
        for row in shown:
            table.add_row(
                escape(row.slide_id),
                f"[{COLOURS[row.state]}]{row.state}[/]",
                row.stage,
                "" if row.tiles is None else str(row.tiles),
                "" if row.tissue_mm2 is None else f"{row.tissue_mm2:.2f}",
                "" if row.share_not_analysed is None else f"{row.share_not_analysed:.1%}",
            )
        out.print(table)
        print_reasons([(row.slide_id, row.reason) for row in shown])
    if len(wanted) > len(shown):
        out.print(f"... and {len(wanted) - len(shown)} more; slides.csv lists all of them")
    counts = Counter(row.state for row in rows)
    text = ", ".join(f"[{colour}]{counts[s]} {s}[/]" for s, colour in COLOURS.items() if counts[s])
    out.print(f"{len(rows)} slides: {text}")


def print_not_analysed(states: Iterable[SlideState]) -> None:
    """Print how much of the tissue of all slides lies in no tile, and why."""
    from wsi_ips.evaluation.summary import not_analysed_texts
    from wsi_ips.pipeline.slide_states import not_analysed_of

    figures = not_analysed_of(states)
    if figures["share_not_analysed"] is not None:
        put("tissue not analysed: {} ({})".format(*not_analysed_texts(figures)))


def print_reasons(reasons: Sequence[tuple[str, str]]) -> None:
    """Print a paragraph per slide with a reason, which would not fit into a table."""
    for slide_id, reason in reasons:
        if reason:
            put(f"[bold]{escape(slide_id)}[/]: {escape(reason)}")


def print_explanation(lines: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair per line."""
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        put(f"[bold]{name:<{width}}[/]  {escape(value)}")


def print_mismatches(tiles: Verified, predictions: Verified) -> int:
    """Print what a verification found, and return the number of mismatches."""
    mismatches = [*tiles.mismatches, *predictions.mismatches]
    print_reasons([(entry.slide_id, entry.what) for entry in mismatches])
    found = f"[red]{len(mismatches)} mismatches[/]" if mismatches else "[green]no mismatch[/]"
    out.print(f"{tiles.checked} slides verified (headers, and of files over 16 MiB samples of their pixels): {found}")
    if predictions.checked:
        largest = f"largest difference {predictions.off:.1g}"
        out.print(f"{predictions.checked} predictions computed again from their stored tiles: {largest}")
    return len(mismatches)


def print_imported(
    states: Iterable[SlideState], methods: Mapping[str, str], folder: Path, features: Path | None = None
) -> None:
    """Print which tool's tiles each slide has, what was refused, and how to keep them."""
    rows = [state for state in states if state.state != "pending"]
    for state in rows:
        if state.state == "ok":
            say("green", state.slide_id, methods[state.slide_id])
        else:
            say("red" if state.state == "failed" else "yellow", state.slide_id, f"{state.state}: {state.reason}")
    failed = sum(state.state == "failed" for state in rows)
    out.print(f"{len(rows)} slides: [green]{len(rows) - failed} imported[/], {failed} failed")
    if not any(state.state == "ok" for state in rows):
        return
    put(escape(f"to keep these tiles, add to the recipe:  tiles: {{imported: {folder}}}"))
    if features is not None:
        put(escape(f"and these features:  features: {{imported: {features}}}  and  model: {{input: features}}"))


def print_exported(found: Exported, to: Path) -> None:
    """Print where exported files are, what a slide's own file lacks, and which slides were refused."""
    if nothing := [name for name, files in found.written.items() if not files]:
        say("yellow", "no tile, so no file", few(nothing))
    for slide_id, notes in found.notes.items():
        for note in notes:
            say("yellow", slide_id, note)
    for path in found.tables:
        put(f"table {escape(str(path))}")
    print_refused(found.refused)
    written = len(found.written) - len(nothing)
    put(f"{written} slides written to {escape(str(to))}, {len(found.refused)} slides refused")


def print_refused(reasons: Mapping[str, str]) -> None:
    """Print why slides cannot be used."""
    for slide_id, reason in reasons.items():
        say("red", slide_id, reason)
