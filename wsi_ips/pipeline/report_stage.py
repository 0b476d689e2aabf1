"""Stage ``report``: measures the run, writes its summary, and the page that shows everything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from wsi_ips.config import Recipe
from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.calibration import Calibration
from wsi_ips.evaluation.slide_evaluation import SITE_COLUMNS
from wsi_ips.evaluation.summary import Evaluation, headline
from wsi_ips.inference.slide_scores import DECIDING_TILES, SlideScores
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint_card import ModelCard, read_card
from wsi_ips.pipeline.demo_slides import is_synthetic
from wsi_ips.pipeline.evaluate_run import evaluate_run, manifest_cells
from wsi_ips.pipeline.run_folder import write_facts
from wsi_ips.pipeline.slide_predictions import RunPredictions
from wsi_ips.pipeline.slide_states import STATES, not_analysed_of
from wsi_ips.pipeline.tissue_sheet import recall_summary, sheet_entries
from wsi_ips.provenance import atomic_write_json, parse_object, peak_rss_mb
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


def report_stage(recipe: Recipe, predictions: RunPredictions, *, seconds: float | None = None) -> dict[str, Any]:
    """Write ``summary.json``, ``run.json``, ``evaluation.json`` and the report; return the summary.

    ``seconds`` is the time the call took so far; None keeps time and memory of the stored summary.
    """
    records, folder, states = predictions.slides.records, predictions.folder, predictions.states
    try:
        evaluation = evaluate_run(predictions, split=SPLIT)
    except EvaluationError as error:
        evaluation = Evaluation(None, notes=(f"no figures: {error}",))
    summary = {
        "name": recipe.name,
        "seed": recipe.seed,
        "slides": len(records),
        **{f"slides_{state}": states.count(state) for state in STATES},
        **evaluation.summary(),
        **recall_summary(sheet_entries(records, states)),
        **not_analysed_of(states),
        **_cost(folder.summary, seconds),
        "notes": list(evaluation.notes),
        "training_warning": _training_warning(recipe, folder.metrics),
        "report": folder.report.relative_to(folder.root).as_posix(),
    }
    facts = write_facts(folder, recipe, records)
    atomic_write_json(folder.summary, summary)
    atomic_write_json(folder.evaluation, evaluation.as_json())
    write_report(folder.report, _report_data(recipe, predictions, evaluation, summary, facts))
    return summary


def _training_warning(recipe: Recipe, metrics: Path) -> str:
    """Return why the model that this run trained must not be used; empty where it may, or was trained elsewhere."""
    if recipe.predict.checkpoint is not None:
        return ""
    return warning_of_file(metrics, recipe.training, recipe.model)


def _cost(stored_summary: Path, seconds: float | None) -> dict[str, float]:
    """Return time and memory of this call, or those of the stored summary."""
    if seconds is None:
        try:
            stored = parse_object(stored_summary.read_bytes())
            return {name: float(stored[name]) for name in ("seconds", "peak_rss_mb")}
        except (OSError, ValueError, KeyError):
            seconds = 0.0
    return {"seconds": round(seconds, 1), "peak_rss_mb": round(peak_rss_mb(), 1)}


def _report_data(
    recipe: Recipe, predictions: RunPredictions, evaluation: Evaluation, summary: dict[str, Any], facts: dict[str, Any]
) -> ReportData:
    maps, records, calibration = recipe.heatmap.maps, predictions.slides.records, predictions.calibration()
    scores = {r.slide_id: predictions.scores(r, calibration) for r in predictions.predicted()}
    threshold = evaluation.slides.threshold if evaluation.slides else None
    slides = [_entry(predictions, maps[0], r, scores.get(r.slide_id), threshold) for r in records]
    card = read_card(predictions.checkpoint)
    recall, lost = lesion_recall(sheet_entries(records, predictions.states))
    trained_here = recipe.predict.checkpoint is None
    return ReportData(
        title=recipe.name,
        positive_class=recipe.labels.classes[-1],
        model_id=card.model_id,
        split=SPLIT,
        figures=tuple(Figure(*line) for line in headline({**summary, "notes": []})),
        slides=_with_pictures(predictions, maps, slides, scores),
        facts=_run_facts(card, facts),
        recipe=yaml.safe_dump(facts["recipe"], sort_keys=False, allow_unicode=True),
        evaluation=evaluation,
        flow=cohort_flow(slides, SPLIT, predict_splits=recipe.predict.splits, trained_here=trained_here),
        history=_history(predictions.folder.metrics, card) if trained_here else None,
        recall=recall,
        lost_lesions=lost,
        card=model_card(_card_facts(predictions, card, evaluation, slides, calibration)),
        warning=summary["training_warning"],
        has_background=recipe.labels.tasks[0].has_background,
    )


def _run_facts(card: ModelCard, facts: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    made = facts["run"]
    return (
        ("made", f"{made['time']}, wsi-ips {made['wsi_ips']}, commit {made['commit'] or '?'}"),
        ("machine", f"{made['platform']}, {made['cpu_count']} cores"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in made["libraries"].items() if version)),
        ("model", f"{card.model_id}: {card.encoder.name}, {card.memory_size} tiles kept per slide"),
        ("patches", f"{card.patch_px} px at {card.patch_mpp} µm/px"),
        ("training fingerprint", card.fingerprint),
        ("seed", str(facts["recipe"]["seed"])),
        ("hash of the splits", facts["parts"]["hash"]),
    )


def _history(metrics: Path, card: ModelCard) -> History | None:
    """Read the training from ``metrics.jsonl``; None where it is missing."""
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
        epochs = tuple(json.loads(line) for line in lines if line.strip())
    except (OSError, ValueError):
        return None
    kept = card.metrics.get("epoch")
    warm_start = sum(epoch.get("cost", {}).get("tiles_per_s") is None for epoch in epochs)  # epochs without a scan
    return History(epochs, None if kept is None else round(kept), warm_start)


def _card_facts(
    predictions: RunPredictions,
    card: ModelCard,
    evaluation: Evaluation,
    slides: list[SlideEntry],
    calibration: Calibration,
) -> CardFacts:
    decision = (
        f"the {card.memory_size} tiles of the highest score"
        if calibration.tasks[0].decision == "pooled"
        else f"the {DECIDING_TILES} tiles with the strongest evidence for a class (`predict.decision: tiles`)"
    )
    cells, records = manifest_cells(predictions), predictions.slides.records
    return CardFacts(
        card,
        decision,
        predictions.section.checkpoint is None,
        slides,
        SPLIT,
        sites={name: {r.slide_id: cells[r.slide_id].get(name, "") for r in records} for name in SITE_COLUMNS},
        patients={r.slide_id: r.patient_id for r in records if r.patient_id},
        evaluation=evaluation,
        is_synthetic=is_synthetic(predictions.slides.manifest),
    )


def _entry(
    predictions: RunPredictions, picture: str, record: SlideRecord, scores: SlideScores | None, threshold: float | None
) -> SlideEntry:
    """Return a slide's row of the worklist, without large pictures."""
    slides, folder = predictions.slides, predictions.folder
    state, task, truth = predictions.states[record.slide_id], predictions.labels.tasks[0], slides.target(record)
    probability = scores.probability[-1] if scores else None
    positive = None if truth is None else bool(task.is_positive(truth))
    overlay = folder.overlay(record.slide_id, picture)
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
        not_analysed=state.not_analysed,
        positive=positive,
        outcome=outcome_of(positive, probability, threshold) if record.split == SPLIT else "",
        stage=state.stage,
        is_tiled=state.is_tiled,
        has_label=slides.has_label(record),
        thumbnail=thumbnail(overlay, folder.tissue / f"{record.slide_id}.jpg") if scores else None,
    )


def _with_pictures(
    predictions: RunPredictions, kinds: Sequence[str], slides: list[SlideEntry], scores: Mapping[str, SlideScores]
) -> tuple[SlideEntry, ...]:
    """Add heatmaps and top tiles to as many slides as the page has room for."""
    entries, records = {s.slide_id: s for s in slides}, {r.slide_id: r for r in predictions.slides.records}
    path_of = predictions.folder.overlay
    drawn = {name for name in scores if all(path_of(name, kind).exists() for kind in kinds)}
    chosen, room = worth_pictures(slides, drawn), PICTURE_BYTES
    with predictions.progress.stage("report", len(chosen), "slides") as advance:
        for name in chosen:
            index = predictions.slides.index(records[name])
            pictured = replace(
                entries[name],
                overlays=tuple(
                    MapPicture(SCORE_MAPS[k].picture_title, overlay_picture(path_of(name, k))) for k in kinds
                ),
                top=_top_tiles(predictions, records[name], scores[name], index),
                tile_um=index.plan.patch_size.width * index.plan.effective_mpp.x,
            )
            size = picture_bytes(pictured)
            if size <= room:
                entries[name] = pictured
                room -= size
            advance(1)
    return tuple(entries.values())


def _top_tiles(
    predictions: RunPredictions, record: SlideRecord, scores: SlideScores, index: TileIndex
) -> tuple[TopTile, ...]:
    """Return the tiles with the highest single-tile probability, best first; none where they cannot be read."""
    best = np.argsort(-scores.positive_probability, kind="stable")[:GALLERY_TILES].astype(np.int32)
    tiles_of = predictions.slides.tiles
    pixels = predictions.states.fence(record.slide_id, "heatmap", lambda: read_tiles(tiles_of(record).only(best)))
    if pixels is None:
        return ()
    return tuple(
        TopTile(tile_picture(patch), float(scores.positive_probability[n]), int(index.x[n]), int(index.y[n]))
        for n, patch in zip(best, pixels, strict=True)
    )
