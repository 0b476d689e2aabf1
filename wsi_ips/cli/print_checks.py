"""What ``check`` and ``split`` print; it fits 80 columns if the names do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from wsi_ips.cli.console import few, out, say

if TYPE_CHECKING:
    from wsi_ips.model.encoders import Preset
    from wsi_ips.pipeline.check_machine import Finding, Verdict
    from wsi_ips.pipeline.check_slides import CheckReport
    from wsi_ips.pipeline.split_cohort import SplitOutcome

SHOWN = 10
BAR = 24
VERDICTS: dict[Verdict, str] = {"ok": "green", "note": "yellow", "wrong": "red"}


def print_findings(findings: Sequence[Finding], *, only_problems: bool) -> None:
    """Print the check of the machine, with what to do."""
    shown = [f for f in findings if f.verdict != "ok"] if only_problems else findings
    if not shown:
        return
    table = Table(box=None, show_header=False, pad_edge=False)
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

    table = Table("slide", "by", "level 0 px", "lv", "µm/px", "MB", "tiles", box=None, pad_edge=False)
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
        of = f"{report.settings.patch_px} px at {report.settings.target_mpp:g} µm/px"
        out.print(f"expected: {report.tiles} tiles of {of} [dim](if {TISSUE_SHARE:.0%} of the area is tissue)[/]")
    for row in report.rows:
        for remark in row.remarks:
            say("yellow", row.slide_id, remark)
    for row in report.rows:
        if row.problem:
            say("red", row.slide_id, row.problem)
    bad = f", [red]{report.unusable} not[/]" if report.unusable else ""
    out.print(f"{len(report.rows)} slides: [green]{len(report.rows) - report.unusable} usable[/]{bad}")


def print_splits(outcome: SplitOutcome, path: Path) -> None:
    """Print the slides per part and stratum, what was kept together, and what was left out."""
    strata = sorted({outcome.strata[name] for name in outcome.splits.folds[0]})
    table = Table("fold", "part", "slides", *(escape(s or "(empty)") for s in strata), box=None, pad_edge=False)
    for number, fold in enumerate(outcome.splits.folds):
        for part in ("train", "val", "test"):
            names = [name for name, where in fold.items() if where == part]
            counts = Counter(outcome.strata[name] for name in names)
            label = str(number) if part == "train" else ""
            table.add_row(label, part, str(len(names)), *(str(counts[s]) for s in strata))
    out.print(table)
    for kin in outcome.related[:SHOWN]:
        say("yellow", "kept together", str(kin))
    if len(outcome.related) > SHOWN:
        out.print(f"and {len(outcome.related) - SHOWN} more pairs")
    for name, reason in outcome.unseen.items():
        say("yellow", f"{name} was not compared", reason)
    if outcome.left_out:
        say("yellow", "in no part, without a value to stratify by", few(outcome.left_out))
    if outcome.without_patient:
        out.print(f"{outcome.without_patient} slides without `patient_id`: each counts as a patient of its own")
    where = f"[bold]{escape(str(path))}[/]  hash {outcome.splits.hash}"
    out.print(f"{where}; name it in the recipe: `split.file`", soft_wrap=True)


def print_encoders(presets: Sequence[Preset]) -> None:
    """Print a table of presets."""
    from wsi_ips.model.encoders import scale_text

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
    out.print(
        f"{len(presets)} presets: `model.encoder: preset:NAME`. The licence is that of the weights; "
        "card = read the model card, which decides",
        soft_wrap=True,
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
    """What decodes the pixels and why, one line for all slides that share it."""
    slides: dict[str, list[str]] = {}
    for row in report.rows:
        if row.info:
            slides.setdefault(row.info.pixels_by, []).append(row.slide_id)
    for how, names in sorted(slides.items(), key=lambda pair: -len(pair[1])):
        some = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        out.print(f"pixels by {escape(how)} [dim]({len(names)}: {escape(some)})[/]", soft_wrap=True)


def _print_unlisted(report: CheckReport) -> None:
    for path in report.unlisted.slides:
        say("yellow", "in no row, but named like a slide", str(path))
    others = report.unlisted.others
    if others:
        kinds = Counter(path.suffix.lower() or "without suffix" for path in others)
        text = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        say("yellow", f"{len(others)} other files in no row", f"{text} ({few([path.name for path in others])})")
