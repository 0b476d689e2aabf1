"""What the commands about cohort, machine and neighbours print; fits 80 columns where names do."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from wsi_ips.cli.console import out

if TYPE_CHECKING:
    from wsi_ips.pipeline.checks.check import CheckedSlide, CheckReport
    from wsi_ips.pipeline.checks.doctor import Finding, Verdict
    from wsi_ips.pipeline.checks.split import SplitOutcome
    from wsi_ips.pipeline.tiling.neighbours import Exported, Imported

SHOWN = 10
BAR = 24
SAME_SCALE = 1.05
VERDICTS: dict[Verdict, str] = {"ok": "green", "note": "yellow", "wrong": "red"}


def print_report(report: CheckReport) -> None:
    """Table of headers, scales, who decodes, copies, unknown files, expected work, problems, counts."""
    table = Table("slide", "by", "level 0 px", "lv", "µm/px", "MB", "tiles", box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.no_wrap = True
    for column in table.columns[3:]:
        column.justify = "right"
    for row in report.rows:
        name = escape(row.slide_id)
        table.add_row(
            f"[red]{name}[/]" if row.problem else name,
            row.pixels_by.partition(":")[0],
            f"{row.size_px0.width} x {row.size_px0.height}" if row.size_px0 else "",
            str(row.levels or ""),
            f"{row.mpp.x:.4g}" if row.mpp else "",
            f"{row.file_bytes / 1e6:.1f}" if row.file_bytes else "",
            str(row.work.tiles) if row.work else "",
        )
    out.print(table)
    _print_scales(report.rows)
    _print_decoders(report.rows)
    for group in report.copies:
        _say("yellow", "one and the same", ", ".join(group) + ": keep one, or keep them in one split")
    _print_unknown(report)
    _print_work(report)
    for row in report.rows:
        for remark in row.remarks:
            _say("yellow", row.slide_id, remark)
    for row in report.rows:
        if row.problem:
            _say("red", row.slide_id, row.problem)
    good = len(report.rows) - report.unusable
    bad = f", [red]{report.unusable} not[/]" if report.unusable else ""
    out.print(f"{len(report.rows)} slides: [green]{good} usable[/]{bad}")


def scale_bins(mpps: Sequence[float]) -> list[tuple[float, float, int]]:
    """Smallest, largest and number of scales that lie within 5 % of the smallest of their group.

    >>> scale_bins([0.5, 0.25, 0.251, 0.2500001])
    [(0.25, 0.251, 3), (0.5, 0.5, 1)]
    """
    bins: list[list[float]] = []
    for mpp in sorted(mpps):
        if bins and mpp <= bins[-1][0] * SAME_SCALE:
            bins[-1].append(mpp)
        else:
            bins.append([mpp])
    return [(group[0], group[-1], len(group)) for group in bins]


def report_dict(report: CheckReport) -> dict[str, Any]:
    """The report as plain JSON values."""
    sources = Counter(row.mpp_source for row in report.rows if row.mpp)
    scales = scale_bins([row.mpp.x for row in report.rows if row.mpp])
    total, rate, threads = _estimate(report)
    return {
        "slides": len(report.rows),
        "usable": len(report.rows) - report.unusable,
        "rows": [_row_dict(row) for row in report.rows],
        "scales": [{"mpp_from": low, "mpp_to": high, "slides": count} for low, high, count in scales],
        "mpp_sources": dict(sources),
        "copies": [list(group) for group in report.copies],
        "unknown_slides": [str(path) for path in report.unknown.slides],
        "unknown_files": [str(path) for path in report.unknown.others],
        "expected": {
            "slides": total.slides,
            "grid_tiles": total.grid_tiles,
            "tiles": total.tiles,
            "tissue_share": report.settings.tissue_share,
            "target_mpp": report.settings.target_mpp,
            "patch_px": report.settings.patch_px,
            "decoded_gb": round(total.decoded_gb, 3),
            "read_gb": round(total.read_gb, 3),
            "reading_hours": round(total.hours, 4),
            "decoding_mpx_per_s": round(rate, 1),
            "threads": threads,
        },
    }


def write_rows(path: Path, report: CheckReport) -> None:
    """A CSV file with a row per slide."""
    from wsi_ips.provenance import atomic_write_text

    rows = [_row_dict(row) for row in report.rows]
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["slide_id"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "; ".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    atomic_write_text(path, text.getvalue())


def print_findings(findings: Sequence[Finding]) -> None:
    """What was found, worst last, with what to do."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        advice = f"\n[bold]-> {escape(finding.advice)}[/]" if finding.advice else ""
        colour = VERDICTS[finding.verdict]
        table.add_row(f"[{colour}]{finding.verdict}[/]", finding.what, escape(finding.found) + advice)
    out.print(table)
    wrong = sum(finding.verdict == "wrong" for finding in findings)
    out.print(f"[red]{wrong} wrong[/]" if wrong else "[green]everything needed is there[/]")


def print_splits(outcome: SplitOutcome, path: Path) -> None:
    """Slides per part and stratum, what was kept together, what was left out."""
    strata = sorted({outcome.strata[name] for name in outcome.splits.folds[0]})
    table = Table("fold", "part", "slides", *(escape(s or "(empty)") for s in strata), box=None, pad_edge=False)
    for number, fold in enumerate(outcome.splits.folds):
        for part in ("train", "val", "test"):
            names = [name for name, where in fold.items() if where == part]
            counts = Counter(outcome.strata[name] for name in names)
            table.add_row(
                str(number) if part == "train" else "", part, str(len(names)), *(str(counts[s]) for s in strata)
            )
    out.print(table)
    for pair in outcome.related[:SHOWN]:
        _say("yellow", "kept together", str(pair))
    if len(outcome.related) > SHOWN:
        out.print(f"and {len(outcome.related) - SHOWN} more pairs")
    for name, reason in outcome.unseen.items():
        _say("yellow", f"{name} was not compared", reason)
    if outcome.left_out:
        _say("yellow", "in no part, without a value to stratify by", _few(outcome.left_out))
    if outcome.without_patient:
        out.print(f"{outcome.without_patient} slides without `patient_id`: each counts as a patient of its own")
    out.print(
        f"[bold]{escape(str(path))}[/]  hash {outcome.splits.hash}; name it in the recipe: `split.file`", soft_wrap=True
    )


def print_imported(outcome: Imported, folder: Path, features: Path | None = None) -> None:
    """Whose tiles each slide has, and what was refused."""
    for state in outcome.states:
        if state.slide_id in outcome.methods and state.state == "ok":
            _say("green", state.slide_id, outcome.methods[state.slide_id])
        elif state.state != "pending":
            _say("red" if state.state == "failed" else "yellow", state.slide_id, f"{state.state}: {state.reason}")
    for path in outcome.unknown:
        _say("yellow", str(path), "belongs to no slide of the manifest")
    good = len(outcome.states) - outcome.failed
    out.print(f"{len(outcome.states)} slides: [green]{good} imported[/], {outcome.failed} failed")
    out.print(
        f"to keep these tiles, write into the recipe:  tiles: {{imported: {escape(str(folder))}}}", soft_wrap=True
    )
    if features is not None:
        out.print(
            f"and these features:  features: {{imported: {escape(str(features))}}}  and  model: {{input: features}}",
            soft_wrap=True,
        )


def print_exported(outcome: Exported, to: Path) -> None:
    """Where the files are, and what was refused."""
    for name, reason in outcome.refused.items():
        _say("red", name, reason)
    nothing = [name for name, path in outcome.written.items() if path is None]
    if nothing:
        _say("yellow", "no tile, and so no file", _few(nothing))
    for path in outcome.tables:
        out.print(f"table {escape(str(path))}", soft_wrap=True)
    count = sum(path is not None for path in outcome.written.values())
    out.print(f"{count} files in [bold]{escape(str(to))}[/], {len(outcome.refused)} slides refused", soft_wrap=True)


def _print_scales(rows: Sequence[CheckedSlide]) -> None:
    bins = scale_bins([row.mpp.x for row in rows if row.mpp])
    most = max((count for _, _, count in bins), default=1)
    for low, high, count in bins:
        text = f"{low:.4g}" if high / low < 1.001 else f"{low:.4g} to {high:.4g}"
        out.print(f"{text:>16} µm/px  {'█' * max(1, round(BAR * count / most))} {count}")
    sources = Counter(row.mpp_source for row in rows if row.mpp)
    if sources:
        out.print("scale from " + ", ".join(f"{escape(name)} ({count})" for name, count in sources.most_common()))


def _print_decoders(rows: Sequence[CheckedSlide]) -> None:
    """Who decodes the pixels and why, one line for all slides that share it."""
    for path, count in Counter(row.pixels_by for row in rows if row.pixels_by).most_common():
        names = [row.slide_id for row in rows if row.pixels_by == path]
        few = ", ".join(names[:3]) + (" ..." if count > 3 else "")
        out.print(f"pixels by {escape(path)} [dim]({count}: {escape(few)})[/]", soft_wrap=True)


def _print_unknown(report: CheckReport) -> None:
    for path in report.unknown.slides:
        _say("yellow", "in no row, but named like a slide", str(path))
    others = report.unknown.others
    if others:
        kinds = Counter(path.suffix.lower() or "no ending" for path in others)
        text = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        few = _few([path.name for path in others])
        out.print(f"[yellow]{len(others)} other files in no row[/]: {escape(text)} ({escape(few)})", soft_wrap=True)


def _print_work(report: CheckReport) -> None:
    total, rate, threads = _estimate(report)
    if not total.slides:
        return
    settings = report.settings
    time = f"{total.hours:.1f} h" if total.hours >= 1 else f"{total.hours * 60:.1f} min"
    out.print(
        f"expected: {total.tiles} tiles of {settings.patch_px} px at {settings.target_mpp:g} µm/px on "
        f"{total.slides} slides, {_bytes(total.read_gb)} read, {_bytes(total.decoded_gb)} of pixels, {time} to "
        f"read once with {threads} threads"
    )
    out.print(
        f"[dim]  taken: tissue on {settings.tissue_share:.0%} of the grid of {total.grid_tiles} tiles; "
        f"{rate:.0f} Mpx/s per thread, measured here now, six times as long where OpenSlide decodes; the "
        "network's time comes on top[/]"
    )


def _bytes(gb: float) -> str:
    return f"{gb:.1f} GB" if gb >= 1 else f"{gb * 1e3:.0f} MB"


def _estimate(report: CheckReport) -> tuple[Any, float, int]:
    from wsi_ips.config import ComputeSection
    from wsi_ips.pipeline.checks.estimate import estimate
    from wsi_ips.slides.speed import decoding_rate_mpx_s

    rate, threads = decoding_rate_mpx_s(), ComputeSection().readers
    works = [row.work for row in report.rows if row.work and not row.problem]
    return estimate(works, mpx_per_s=rate, threads=threads), rate, threads


def _row_dict(row: CheckedSlide) -> dict[str, Any]:
    return {
        "slide_id": row.slide_id,
        "path": row.path,
        "usable": not row.problem,
        "reader": row.reader,
        "pixels_by": row.pixels_by,
        "width_px0": row.size_px0.width if row.size_px0 else None,
        "height_px0": row.size_px0.height if row.size_px0 else None,
        "levels": row.levels or None,
        "mpp_x": row.mpp.x if row.mpp else None,
        "mpp_y": row.mpp.y if row.mpp else None,
        "mpp_source": row.mpp_source,
        "file_bytes": row.file_bytes or None,
        "content": row.identity,
        "grid_tiles": row.work.grid_tiles if row.work else None,
        "expected_tiles": row.work.tiles if row.work else None,
        "problem": row.problem,
        "remarks": list(row.remarks),
    }


def _say(colour: str, who: str, what: str) -> None:
    out.print(f"[{colour}]{escape(who)}[/]: {escape(what)}", soft_wrap=True)


def _few(names: Sequence[str] | Mapping[str, Any]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
