"""Stage ``report``: figures of the run and the page that shows them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import yaml

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation import Evaluation
from wsi_ips.model import ModelCard, read_card
from wsi_ips.pipeline.evaluation.evaluate import evaluate_run
from wsi_ips.pipeline.evaluation.localise import SIZES
from wsi_ips.pipeline.prediction.scored import checkpoint_folder, model_calibration, predicted, slide_scores
from wsi_ips.pipeline.report.card import model_card
from wsi_ips.pipeline.report.flow import cohort_flow
from wsi_ips.pipeline.report.slides import slide_entries
from wsi_ips.pipeline.run import Run, write_facts
from wsi_ips.pipeline.states import STATES
from wsi_ips.pipeline.tiling.sheet import recall_summary, sheet_entries
from wsi_ips.provenance import atomic_write_json, peak_rss_mb
from wsi_ips.results import Figure, History, LostLesion, RecallRow, ReportData, write_report
from wsi_ips.results.sheet import SheetEntry

SPLIT = "test"
"""Slides that the figures of a run rest on."""


def report_stage(run: Run, *, seconds: float | None = None) -> dict[str, Any]:
    """Write ``summary.json``, ``run.json``, ``evaluation.json`` and the report; the summary.

    Parameters
    ----------
    run
        With predictions, or at least with a model.
    seconds
        That the call took so far; None keeps time and memory of the summary that is there.
    """
    evaluation = evaluate(run)
    summary = _summary(run, evaluation, seconds)
    facts = write_facts(run)
    atomic_write_json(run.folder.summary, summary)
    atomic_write_json(run.folder.evaluation, evaluation.as_json())
    write_report(run.folder.report, _report_data(run, evaluation, summary, facts))
    return summary


def evaluate(run: Run) -> Evaluation:
    """Figures of the test slides; empty, with the reason, where there are none."""
    try:
        return evaluate_run(run, split=SPLIT)
    except EvaluationError as error:
        return Evaluation(None, notes=(f"no figures: {error}",))


def _summary(run: Run, evaluation: Evaluation, seconds: float | None) -> dict[str, Any]:
    slides, where = evaluation.slides, evaluation.localisation
    metrics = slides.metrics if slides else {}
    auc = metrics.get("auc")
    tiles, attention = (where.tile_probability, where.tile_attention) if where else (None, None)
    curve = where.lesions_by_peaks if where else None
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
        "test_threshold": slides.threshold if slides else None,
        "test_threshold_from": slides.threshold_from if slides else None,
        **{f"test_{name}": metrics[name].value for name in metrics if not name.startswith("auc")},
        **{
            f"test_{what}_{task.name}": value
            for task in evaluation.tasks
            for what, value in (("accuracy", task.share_right), ("auc", task.mean_auc), ("slides", task.slides))
        },
        "tile_auc_probability": tiles.auc if tiles else None,
        "tile_pr_auc_probability": tiles.pr_auc if tiles else None,
        "tile_auc_attention": attention.auc if attention else None,
        "tile_pr_auc_attention": attention.pr_auc if attention else None,
        "froc": curve.score if curve else None,
        "froc_lesions": curve.lesions if curve else None,
        **recall_summary(run),
        "tumour_tiles": tiles.tumour_tiles if tiles else None,
        "tiles": tiles.tiles if tiles else None,
        **_cost(run, seconds),
        "notes": list(evaluation.notes),
        "report": run.folder.report.relative_to(run.folder.root).as_posix(),
    }


def _cost(run: Run, seconds: float | None) -> dict[str, float]:
    """Time and memory of this call, or those of the summary that is there."""
    if seconds is None:
        try:
            stored = json.loads(run.folder.summary.read_text(encoding="utf-8"))
            return {name: float(stored[name]) for name in ("seconds", "peak_rss_mb")}
        except (OSError, ValueError, KeyError):
            seconds = 0.0
    return {"seconds": round(seconds, 1), "peak_rss_mb": round(peak_rss_mb(), 1)}


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
    if summary.get("froc") is not None:
        lines.append(("FROC score, peaks", f"{summary['froc']:.3f}", f"{summary['froc_lesions']} lesions"))
    if summary.get("tile_recall") is not None:
        lost = f"{summary['lesions_lost']} of {summary['lesions']} annotated lesions lost before any learning"
        lines.append(("annotated tumour in tiles", f"{summary['tile_recall']:.1%}", lost))
    lines.append(("time", f"{summary['seconds']:.0f} s", "all stages of the call"))
    lines.append(("peak memory", f"{summary['peak_rss_mb']:.0f} MB", "resident, main process"))
    return lines + [("note", "", note) for note in summary["notes"]]


def _report_data(run: Run, evaluation: Evaluation, summary: dict[str, Any], facts: dict[str, Any]) -> ReportData:
    calibration = model_calibration(run)
    scores = {r.slide_id: slide_scores(run, r, calibration) for r in predicted(run)}
    threshold = evaluation.slides.threshold if evaluation.slides else None
    libraries = ", ".join(f"{k} {v}" for k, v in facts["run"]["libraries"].items() if v)
    card, sheet = read_card(checkpoint_folder(run)), sheet_entries(run)
    recall, lost = _recall(sheet)
    return ReportData(
        title=run.recipe.name,
        positive_class=run.recipe.labels.classes[-1],
        model_id=card.model_id,
        split=SPLIT,
        figures=tuple(Figure(*line) for line in headline({**summary, "notes": []})),
        slides=slide_entries(run, scores, threshold=threshold, split=SPLIT),
        facts=(
            (
                "made",
                f"{facts['run']['time']}, wsi-ips {facts['run']['wsi_ips']}, commit {facts['run']['commit'] or '?'}",
            ),
            ("machine", f"{facts['run']['platform']}, {facts['run']['cpu_count']} cores"),
            ("libraries", libraries),
            ("model", f"{card.model_id}: {card.encoder.name}, {card.memory_size} tiles kept per slide"),
            ("patches", f"{card.patch_px} px at {card.patch_mpp} µm/px"),
            ("training fingerprint", card.fingerprint),
            ("seed", str(run.recipe.seed)),
            ("hash of the parts", facts["parts"]["hash"]),
        ),
        recipe=yaml.safe_dump(facts["recipe"], sort_keys=False, allow_unicode=True),
        evaluation=evaluation,
        flow=cohort_flow(run, scores.keys(), SPLIT),
        history=_history(run, card),
        recall=recall,
        lost_lesions=lost,
        card=model_card(run, card, evaluation, SPLIT),
    )


def _history(run: Run, card: ModelCard) -> History | None:
    """The training of this run, from ``metrics.jsonl``; None where the model was trained elsewhere."""
    if run.recipe.predict.checkpoint is not None:
        return None
    try:
        lines = run.folder.metrics.read_text(encoding="utf-8").splitlines()
        epochs = tuple(json.loads(line) for line in lines if line.strip())
    except (OSError, ValueError):
        return None
    kept = card.metrics.get("epoch")
    warm_start = sum(
        epoch.get("cost", {}).get("tiles_per_s") is None for epoch in epochs
    )  # nothing was scanned in them
    return History(epochs, None if kept is None else round(kept), warm_start)


def _recall(sheet: Sequence[SheetEntry]) -> tuple[tuple[RecallRow, ...], tuple[LostLesion, ...]]:
    """Lesions by size, and those that are lost, the largest first."""
    lesions = [(entry.slide_id, lesion) for entry in sheet for lesion in entry.lesions]
    rows = []
    for size in (*SIZES, "all"):
        here = [lesion for _, lesion in lesions if size in (lesion["size_class"], "all")]
        area = math.fsum(lesion["area_um2"] for lesion in here)
        if not here or not area:
            continue
        shares = [math.fsum(le["area_um2"] * le[name] for le in here) / area for name in ("in_tissue", "in_tiles")]
        lost = [sum(le["lost_to"] == stage for le in here) for stage in ("segmentation", "tiling")]
        rows.append(RecallRow(size, len(here), *lost, *shares))
    gone = sorted((pair for pair in lesions if pair[1]["lost_to"]), key=lambda pair: -pair[1]["diameter_um"])
    return tuple(rows), tuple(
        LostLesion(name, le["x_px0"], le["y_px0"], le["diameter_um"], le["size_class"], le["lost_to"])
        for name, le in gone
    )
