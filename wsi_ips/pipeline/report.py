"""Stage ``report``: figures of the run and the page that shows them."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation import (
    Interval,
    TaskFigures,
    TileFigures,
    auc_with_interval,
    roc_curve,
    slide_intervals,
    slide_metrics,
    task_figures,
    tile_figures,
)
from wsi_ips.inference import SlideScores
from wsi_ips.manifest import SlideRecord
from wsi_ips.model import read_card
from wsi_ips.model.calibration import Calibration
from wsi_ips.pipeline.facts import write_facts
from wsi_ips.pipeline.heatmap import KINDS
from wsi_ips.pipeline.predict import checkpoint_folder, predicted
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.scored import model_calibration, slide_scores
from wsi_ips.pipeline.sheet import recall_summary
from wsi_ips.pipeline.states import STATES
from wsi_ips.provenance import atomic_write_json, peak_rss_mb
from wsi_ips.results import Figure, ReportData, SlideEntry, TopTile, write_report
from wsi_ips.results.overlay import Kind
from wsi_ips.tiles import TileIndex, read_tiles

PICTURE_PX, TILE_SHOWN_PX = 1100, 128
MOST_PICTURES = 60
"""Slides with pictures on the page; the others have theirs in the run folder."""


@dataclass(frozen=True)
class Figures:
    """What a run amounts to in numbers; None where it cannot be computed, with the reason in ``notes``."""

    auc: Interval | None
    roc: tuple[tuple[float, ...], tuple[float, ...]]
    at_half: dict[str, float]
    intervals: tuple[tuple[str, Interval], ...]
    tile_probability: TileFigures | None
    tile_attention: TileFigures | None
    tasks: dict[str, TaskFigures]
    notes: tuple[str, ...]


def compute_figures(run: Run) -> Figures:
    """Slide and tile figures on the test slides."""
    label = run.recipe.labels.tasks[0]
    in_test = [r for r in predicted(run) if r.split == "test"]
    test = [r for r in in_test if run.truth(r) is not None]
    calibration = model_calibration(run)
    scores = [slide_scores(run, r, calibration) for r in test]
    truth = np.array([label.is_positive(run.truth(r)) for r in test], int)
    score = np.array([s.probability[-1] for s in scores])
    notes: list[str] = []
    auc: Interval | None = None
    roc: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    at_half: dict[str, float] = {}
    intervals: tuple[tuple[str, Interval], ...] = ()
    try:
        auc = auc_with_interval(truth, score)
        false, true = roc_curve(truth, score)
        roc = (tuple(false.tolist()), tuple(true.tolist()))
        at_half = slide_metrics(truth, score)
        intervals = tuple(slide_intervals(truth, score).items())
    except EvaluationError as error:
        notes.append(f"no slide AUC: {error}")
    tiles = _tile_figures(run, test, scores, notes)
    return Figures(auc, roc, at_half, intervals, *tiles, _task_figures(run, in_test), tuple(notes))


def _task_figures(run: Run, test: list[SlideRecord]) -> dict[str, TaskFigures]:
    """Figures of each task on the test slides whose answer is known; tasks of which none is known are left out."""
    calibration = model_calibration(run)
    scores = {r.slide_id: slide_scores(run, r, calibration) for r in test}
    found = {}
    for number, task in enumerate(run.recipe.labels.tasks):
        known = [r.slide_id for r in test if run.truths[r.slide_id][number] is not None]
        if known:
            truth = np.array([run.truths[name][number] for name in known])
            found[task.name] = task_figures(
                truth, np.array([scores[name].verdicts[number].probability for name in known])
            )
    return found


def _tile_figures(
    run: Run, test: list[SlideRecord], scores: list[SlideScores], notes: list[str]
) -> tuple[TileFigures | None, TileFigures | None]:
    """Probability, and attention as tiles times attention, over all test slides with known truth.

    Known are annotated slides, and slides of the first class: they hold no tumour.
    """
    fractions: list[NDArray[np.floating]] = []
    probability: list[NDArray[np.floating]] = []
    attention: list[NDArray[np.floating]] = []
    for record, entry in zip(test, scores, strict=True):
        known = run.index(record).tumour_fraction
        if known is None and not run.recipe.labels.tasks[0].is_negative(run.truth(record)):
            continue
        fractions.append(np.zeros(len(entry.attention)) if known is None else known)
        probability.append(entry.positive_probability)
        attention.append(entry.attention * len(entry.attention))
    try:
        if not fractions:
            raise EvaluationError("no test slide is annotated")
        truth = np.concatenate(fractions)
        return (
            tile_figures(truth, np.concatenate(probability)),
            tile_figures(truth, np.concatenate(attention)),
        )
    except EvaluationError as error:
        notes.append(f"no tile AUC: {error}")
        return None, None


def report_stage(run: Run, *, seconds: float) -> dict[str, Any]:
    """Write ``summary.json``, ``run.json`` and the report; the summary."""
    figures = compute_figures(run)
    summary = _summary(run, figures, seconds)
    facts = write_facts(run)
    atomic_write_json(run.folder.summary, summary)
    write_report(run.folder.report, _report_data(run, figures, summary, facts))
    return summary


def _summary(run: Run, figures: Figures, seconds: float) -> dict[str, Any]:
    auc, tiles, attention = figures.auc, figures.tile_probability, figures.tile_attention
    return {
        "name": run.recipe.name,
        "seed": run.recipe.seed,
        "slides": len(run.records),
        **{f"slides_{state}": run.states.count(state) for state in STATES},
        "test_auc": auc.value if auc else None,
        "test_auc_low": auc.low if auc else None,
        "test_auc_high": auc.high if auc else None,
        "test_auc_method": auc.method if auc else None,
        "test_positives": auc.positives if auc else None,
        "test_negatives": auc.negatives if auc else None,
        **{f"test_{name}": value for name, value in figures.at_half.items()},
        **_task_summary(run, figures),
        "tile_auc_probability": tiles.auc if tiles else None,
        "tile_pr_auc_probability": tiles.pr_auc if tiles else None,
        "tile_auc_attention": attention.auc if attention else None,
        "tile_pr_auc_attention": attention.pr_auc if attention else None,
        **recall_summary(run),
        "tumour_tiles": tiles.tumour_tiles if tiles else None,
        "tiles": tiles.tiles if tiles else None,
        "seconds": round(seconds, 1),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "notes": list(figures.notes),
        "report": run.folder.report.relative_to(run.folder.root).as_posix(),
    }


def _task_summary(run: Run, figures: Figures) -> dict[str, Any]:
    """Figures of tasks with more than two classes, and of further ones: ``test_accuracy_NAME``, ..."""
    return {
        f"test_{what}_{task.name}": value
        for task in run.recipe.labels.tasks
        if task.name in figures.tasks and (task.name != "label" or task.width > 2)
        for what, value in asdict(figures.tasks[task.name]).items()
    }


def headline(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and note of the figures people are shown, in the terminal and on the page."""
    lines = []
    if summary["test_auc"] is not None:
        interval = f"95 % interval {summary['test_auc_low']:.3f}-{summary['test_auc_high']:.3f}"
        counts = f"{summary['test_positives']} + {summary['test_negatives']} slides"
        lines.append(("test AUC", f"{summary['test_auc']:.3f}", f"{interval}, {counts}"))
    for task in [name.removeprefix("test_accuracy_") for name in summary if name.startswith("test_accuracy_")]:
        auc, slides = summary[f"test_auc_{task}"], summary[f"test_slides_{task}"]
        mean_auc = "" if auc is None else f"mean AUC of its classes {auc:.3f}, "
        lines.append((f"accuracy, {task}", f"{summary[f'test_accuracy_{task}']:.3f}", f"{mean_auc}{slides} slides"))
    if summary["tile_auc_probability"] is not None:
        share = f"{summary['tumour_tiles']} of {summary['tiles']} test tiles are tumour"
        lines.append(("tile AUC, probability map", f"{summary['tile_auc_probability']:.3f}", share))
        lines.append(("tile AUC, attention", f"{summary['tile_auc_attention']:.3f}", "comparable within a slide only"))
    if summary.get("tile_recall") is not None:
        lost = f"{summary['lesions_lost']} of {summary['lesions']} annotated lesions lost before any learning"
        lines.append(("annotated tumour in tiles", f"{summary['tile_recall']:.1%}", lost))
    lines.append(("time", f"{summary['seconds']:.0f} s", "all stages of this call"))
    lines.append(("peak memory", f"{summary['peak_rss_mb']:.0f} MB", "resident, main process"))
    return lines + [("note", "", note) for note in summary["notes"]]


def _report_data(run: Run, figures: Figures, summary: dict[str, Any], facts: dict[str, Any]) -> ReportData:
    known = {record.slide_id: record for record in predicted(run)}
    calibration = model_calibration(run)
    pictured = sorted(
        (name for name, record in known.items() if all(run.folder.overlay(record.slide_id, k).exists() for k in KINDS)),
        key=lambda name: -slide_scores(run, known[name], calibration).probability[-1],
    )[:MOST_PICTURES]
    entries = [
        _entry(run, record, calibration if record.slide_id in known else None, record.slide_id in pictured)
        for record in run.records
    ]
    libraries = ", ".join(f"{k} {v}" for k, v in facts["run"]["libraries"].items() if v)
    card = read_card(checkpoint_folder(run))
    return ReportData(
        title=run.recipe.name,
        positive_class=run.recipe.labels.classes[-1],
        model_id=card.model_id,
        figures=tuple(Figure(*line) for line in headline(summary)),
        auc=figures.auc,
        roc=figures.roc,
        slides=tuple(entries),
        facts=(
            ("made", f"{facts['run']['time']}, wsi-ips {facts['run']['wsi_ips']}"),
            ("machine", f"{facts['run']['platform']}, {facts['run']['cpu_count']} cores"),
            ("libraries", libraries),
            ("model", f"{card.model_id}: {card.encoder.name}, {card.memory_size} tiles kept per slide"),
            ("patches", f"{card.patch_px} px at {card.patch_mpp} µm/px"),
            ("training fingerprint", card.fingerprint),
        ),
        metrics=figures.intervals,
        recipe=yaml.safe_dump(facts["recipe"], sort_keys=False, allow_unicode=True),
    )


def _entry(run: Run, record: SlideRecord, calibration: Calibration | None, pictured: bool) -> SlideEntry:
    """A slide's row; without a calibration where it is not predicted."""
    state = run.states[record.slide_id]
    scores = slide_scores(run, record, calibration) if calibration else None
    index = run.index(record) if pictured else None
    return SlideEntry(
        slide_id=record.slide_id,
        state=state.state,
        reason=state.reason,
        label=run.recipe.labels.tasks[0].text(run.truth(record)) or "",
        split=record.split or "",
        probability=scores.probability[-1] if scores else None,
        predicted=scores.label if scores else "",
        tiles=state.tiles,
        tissue_mm2=state.tissue_mm2,
        overlays=tuple(_picture(run, record, kind) for kind in KINDS) if pictured else (),
        top=_top_tiles(run, record, scores, index) if scores and index else (),
        tile_um=index.plan.patch_size.width * index.plan.effective_mpp.x if index else 0.0,
    )


def _picture(run: Run, record: SlideRecord, kind: Kind) -> bytes:
    image = Image.open(run.folder.overlay(record.slide_id, kind)).convert("RGB")
    image.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    return _jpeg(image)


def _top_tiles(run: Run, record: SlideRecord, scores: SlideScores, index: TileIndex) -> tuple[TopTile, ...]:
    """The tiles of the highest single-tile probability, best first."""
    best = np.argsort(-scores.positive_probability, kind="stable")[: run.recipe.heatmap.top_tiles]
    pixels = run.states.fence(
        record.slide_id, "heatmap", lambda: read_tiles(run.tiles(record).only(best.astype(np.int32)))
    )
    if pixels is None:
        return ()
    return tuple(
        TopTile(
            jpeg=_jpeg(Image.fromarray(patch).resize((TILE_SHOWN_PX, TILE_SHOWN_PX), Image.Resampling.BICUBIC)),
            probability=float(scores.positive_probability[tile]),
            x_px0=int(index.x[tile]),
            y_px0=int(index.y[tile]),
        )
        for tile, patch in zip(best, pixels, strict=True)
    )


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
