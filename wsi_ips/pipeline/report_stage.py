"""Stage ``report``: measures the run, writes its summary, and the page that shows everything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import yaml

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.calibration import Calibration
from wsi_ips.evaluation.slide_evaluation import SITE_COLUMNS
from wsi_ips.evaluation.summary import Evaluation, headline
from wsi_ips.inference.slide_scores import DECIDING_TILES, SlideScores
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint_card import ModelCard, read_card
from wsi_ips.pipeline.demo_slides import is_synthetic
from wsi_ips.pipeline.evaluate_run import evaluate_run, manifest_cells
from wsi_ips.pipeline.run import Run, write_facts
from wsi_ips.pipeline.slide_predictions import checkpoint_folder, model_calibration, predicted, slide_scores
from wsi_ips.pipeline.slide_states import STATES
from wsi_ips.pipeline.tissue_sheet import recall_summary, sheet_entries
from wsi_ips.provenance import atomic_write_json, peak_rss_mb
from wsi_ips.results.handoff_pictures import GALLERY_TILES
from wsi_ips.results.model_card import CardFacts, model_card
from wsi_ips.results.report import (
    PICTURE_BYTES,
    overlay_picture,
    picture_bytes,
    thumbnail,
    tile_picture,
    worth_pictures,
    write_report,
)
from wsi_ips.results.report_data import (
    Figure,
    MapPicture,
    ReportData,
    SlideEntry,
    TopTile,
    cohort_flow,
    lesion_recall,
    outcome_of,
)
from wsi_ips.results.report_plots import History
from wsi_ips.results.score_maps import SCORE_MAPS
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.stream import read_tiles
from wsi_ips.training.guessing import warning_of_file

SPLIT = "test"  # the figures of a run are based on it


def report_stage(run: Run, *, seconds: float | None = None) -> dict[str, Any]:
    """Write ``summary.json``, ``run.json``, ``evaluation.json`` and the report; return the summary.

    ``seconds`` is the time the call took so far; None keeps time and memory of the stored summary.
    """
    try:
        evaluation = evaluate_run(run, split=SPLIT)
    except EvaluationError as error:
        evaluation = Evaluation(None, notes=(f"no figures: {error}",))
    summary = {
        "name": run.recipe.name,
        "seed": run.recipe.seed,
        "slides": len(run.records),
        **{f"slides_{state}": run.states.count(state) for state in STATES},
        **evaluation.summary(),
        **recall_summary(run),
        **_cost(run, seconds),
        "notes": list(evaluation.notes),
        "training_warning": _training_warning(run),
        "report": run.folder.report.relative_to(run.folder.root).as_posix(),
    }
    facts = write_facts(run)
    atomic_write_json(run.folder.summary, summary)
    atomic_write_json(run.folder.evaluation, evaluation.as_json())
    write_report(run.folder.report, _report_data(run, evaluation, summary, facts))
    return summary


def _training_warning(run: Run) -> str:
    """Return why the model that this run trained must not be used; empty where it may, or was trained elsewhere."""
    recipe = run.recipe
    if recipe.predict.checkpoint is not None:
        return ""
    return warning_of_file(run.folder.metrics, recipe.training, recipe.model)


def _cost(run: Run, seconds: float | None) -> dict[str, float]:
    """Return time and memory of this call, or those of the stored summary."""
    if seconds is None:
        try:
            stored = json.loads(run.folder.summary.read_text(encoding="utf-8"))
            return {name: float(stored[name]) for name in ("seconds", "peak_rss_mb")}
        except (OSError, ValueError, KeyError):
            seconds = 0.0
    return {"seconds": round(seconds, 1), "peak_rss_mb": round(peak_rss_mb(), 1)}


def _report_data(run: Run, evaluation: Evaluation, summary: dict[str, Any], facts: dict[str, Any]) -> ReportData:
    calibration = model_calibration(run)
    scores = {r.slide_id: slide_scores(run, r, calibration) for r in predicted(run)}
    threshold = evaluation.slides.threshold if evaluation.slides else None
    slides = [_entry(run, r, scores.get(r.slide_id), threshold) for r in run.records]
    card = read_card(checkpoint_folder(run))
    recall, lost = lesion_recall(sheet_entries(run))
    trained_here = run.recipe.predict.checkpoint is None
    return ReportData(
        title=run.recipe.name,
        positive_class=run.recipe.labels.classes[-1],
        model_id=card.model_id,
        split=SPLIT,
        figures=tuple(Figure(*line) for line in headline({**summary, "notes": []})),
        slides=_with_pictures(run, slides, scores),
        facts=_run_facts(run, card, facts),
        recipe=yaml.safe_dump(facts["recipe"], sort_keys=False, allow_unicode=True),
        evaluation=evaluation,
        flow=cohort_flow(slides, SPLIT, predict_splits=run.recipe.predict.splits, trained_here=trained_here),
        history=_history(run, card) if trained_here else None,
        recall=recall,
        lost_lesions=lost,
        card=model_card(_card_facts(run, card, evaluation, slides, calibration)),
        warning=summary["training_warning"],
        has_background=run.recipe.labels.tasks[0].has_background,
    )


def _run_facts(run: Run, card: ModelCard, facts: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    made = facts["run"]
    return (
        ("made", f"{made['time']}, wsi-ips {made['wsi_ips']}, commit {made['commit'] or '?'}"),
        ("machine", f"{made['platform']}, {made['cpu_count']} cores"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in made["libraries"].items() if version)),
        ("model", f"{card.model_id}: {card.encoder.name}, {card.memory_size} tiles kept per slide"),
        ("patches", f"{card.patch_px} px at {card.patch_mpp} µm/px"),
        ("training fingerprint", card.fingerprint),
        ("seed", str(run.recipe.seed)),
        ("hash of the splits", facts["parts"]["hash"]),
    )


def _history(run: Run, card: ModelCard) -> History | None:
    """Read the training from ``metrics.jsonl``; None where it is missing."""
    try:
        lines = run.folder.metrics.read_text(encoding="utf-8").splitlines()
        epochs = tuple(json.loads(line) for line in lines if line.strip())
    except (OSError, ValueError):
        return None
    kept = card.metrics.get("epoch")
    warm_start = sum(epoch.get("cost", {}).get("tiles_per_s") is None for epoch in epochs)  # epochs without a scan
    return History(epochs, None if kept is None else round(kept), warm_start)


def _card_facts(
    run: Run, card: ModelCard, evaluation: Evaluation, slides: list[SlideEntry], calibration: Calibration
) -> CardFacts:
    decision = (
        f"the {card.memory_size} tiles of the highest score"
        if calibration.tasks[0].decision == "pooled"
        else f"the {DECIDING_TILES} tiles with the strongest evidence for a class (`predict.decision: tiles`)"
    )
    cells = manifest_cells(run)
    return CardFacts(
        card,
        decision,
        run.recipe.predict.checkpoint is None,
        slides,
        SPLIT,
        sites={name: {r.slide_id: cells[r.slide_id].get(name, "") for r in run.records} for name in SITE_COLUMNS},
        patients={r.slide_id: r.patient_id for r in run.records if r.patient_id},
        evaluation=evaluation,
        is_synthetic=is_synthetic(run.recipe.manifest),
    )


def _entry(run: Run, record: SlideRecord, scores: SlideScores | None, threshold: float | None) -> SlideEntry:
    """Return a slide's row of the worklist, without large pictures."""
    state, task, truth = run.states[record.slide_id], run.recipe.labels.tasks[0], run.target(record)
    probability = scores.probability[-1] if scores else None
    positive = None if truth is None else bool(task.is_positive(truth))
    overlay = run.folder.overlay(record.slide_id, run.recipe.heatmap.maps[0])
    return SlideEntry(
        slide_id=record.slide_id,
        state=state.state,
        reason=state.reason,
        label=task.format(truth) or "",
        split=record.split or "",
        probability=probability,
        predicted=scores.label if scores else "",
        tiles=state.tiles,
        tissue_mm2=state.tissue_mm2,
        positive=positive,
        outcome=outcome_of(positive, probability, threshold) if record.split == SPLIT else "",
        stage=state.stage,
        is_tiled=state.is_tiled,
        has_label=any(known is not None for known in run.targets[record.slide_id]),
        thumbnail=thumbnail(overlay, run.folder.tissue / f"{record.slide_id}.jpg") if scores else None,
    )


def _with_pictures(run: Run, slides: list[SlideEntry], scores: Mapping[str, SlideScores]) -> tuple[SlideEntry, ...]:
    """Add heatmaps and top tiles to as many slides as the page has room for."""
    entries, records = {s.slide_id: s for s in slides}, {r.slide_id: r for r in run.records}
    kinds = run.recipe.heatmap.maps
    drawn = {name for name in scores if all(run.folder.overlay(name, kind).exists() for kind in kinds)}
    chosen, room = worth_pictures(slides, drawn), PICTURE_BYTES
    with run.progress.stage("report", len(chosen), "slides") as advance:
        for name in chosen:
            index = run.index(records[name])
            pictured = replace(
                entries[name],
                overlays=tuple(
                    MapPicture(SCORE_MAPS[k].picture_title, overlay_picture(run.folder.overlay(name, k))) for k in kinds
                ),
                top=_top_tiles(run, records[name], scores[name], index),
                tile_um=index.plan.patch_size.width * index.plan.effective_mpp.x,
            )
            size = picture_bytes(pictured)
            if size <= room:
                entries[name] = pictured
                room -= size
            advance(1)
    return tuple(entries.values())


def _top_tiles(run: Run, record: SlideRecord, scores: SlideScores, index: TileIndex) -> tuple[TopTile, ...]:
    """Return the tiles with the highest single-tile probability, best first; none where they cannot be read."""
    best = np.argsort(-scores.positive_probability, kind="stable")[:GALLERY_TILES]
    pixels = run.states.fence(
        record.slide_id, "heatmap", lambda: read_tiles(run.tiles(record).only(best.astype(np.int32)))
    )
    if pixels is None:
        return ()
    return tuple(
        TopTile(tile_picture(patch), float(scores.positive_probability[n]), int(index.x[n]), int(index.y[n]))
        for n, patch in zip(best, pixels, strict=True)
    )
