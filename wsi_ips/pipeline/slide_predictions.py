"""Predictions of a run: which slides have current scores, their calibration, and ``predictions.csv``; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from wsi_ips.errors import CheckpointError
from wsi_ips.evaluation.calibration import Calibration, fit_task, read_calibration, write_calibration
from wsi_ips.inference.slide_scores import SlideScores, Verdict, read_scores, stored_fingerprint
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint_card import checkpoint_fingerprint, read_card
from wsi_ips.model.scan_backends import SCAN_BACKENDS
from wsi_ips.pipeline.feature_source import IMPORTED_KEY
from wsi_ips.pipeline.run import Run
from wsi_ips.provenance import atomic_path, fingerprint
from wsi_ips.tiles.feature_store import features_fingerprint

DIGITS = 6


@dataclass(frozen=True)
class PredictedSlide:
    """Result of one slide, for a line on the terminal."""

    slide_id: str
    state: str  # as in the table of states
    reason: str
    verdicts: tuple[Verdict, ...]  # one per task; empty if the slide has no current scores
    tiles: int | None  # number of tiles scored
    picture: Path | None  # probability map


def checkpoint_folder(run: Run) -> Path:
    """Return the checkpoint the recipe names, else the one the run trains."""
    return run.recipe.predict.checkpoint or run.folder.model


def scores_fingerprint(run: Run, record: SlideRecord, model: str) -> str:
    """Return the fingerprint that a slide's scores must have to be up to date."""
    backend = run.recipe.compute.scan_backend
    how: list[str | None] = [backend] if SCAN_BACKENDS[backend].is_calibrated else []
    if run.recipe.features.imported is not None:  # those of the model's own encoder are the pixels in another form
        folder = (run.recipe.features.location or run.folder.features) / IMPORTED_KEY
        how.append(features_fingerprint(folder, record.slide_id))
    return fingerprint("scores", model, run.header(record).fingerprint, *how)


def predicted(run: Run) -> list[SlideRecord]:
    """Return the slides whose stored scores match the checkpoint and their tiles."""
    model = checkpoint_fingerprint(checkpoint_folder(run))
    return [
        record
        for record in run.with_tiles()
        if (found := stored_fingerprint(run.folder.scores, record.slide_id)) is not None
        and found == scores_fingerprint(run, record, model)
    ]


def slide_scores(run: Run, record: SlideRecord, calibration: Calibration | None = None) -> SlideScores:
    """Read a slide's scores and attach the calibration of the run's model, which is read if not given."""
    known = calibration or model_calibration(run)
    return replace(read_scores(run.folder.scores, record.slide_id), calibration=known)


def predicted_slides(run: Run, records: Sequence[SlideRecord], calibration: Calibration) -> list[PredictedSlide]:
    """Return the results of some slides, in their order."""
    done = {record.slide_id for record in predicted(run)}
    found = []
    for record in records:
        state = run.states[record.slide_id]
        picture = run.folder.overlay(record.slide_id, run.recipe.heatmap.maps[0])
        verdicts = slide_scores(run, record, calibration).verdicts if record.slide_id in done else ()
        shown = picture if verdicts and picture.exists() else None
        found.append(PredictedSlide(record.slide_id, state.state, state.reason, verdicts, state.tiles, shown))
    return found


def model_calibration(run: Run) -> Calibration:
    """Read the calibration of the run's model."""
    folder = checkpoint_folder(run)
    return read_calibration(folder, read_card(folder).tasks, checkpoint_fingerprint(folder))


def calibrate(run: Run) -> Calibration:
    """Calibrate the run's model on its validation slides and store the calibration beside it.

    A model from elsewhere keeps its own calibration. The others are calibrated on all labelled slides of split ``val``
    that have tiles, and only once all of these are predicted: the result does not depend on their order.
    """
    folder, decision = checkpoint_folder(run), run.recipe.predict.decision
    if run.recipe.predict.checkpoint is not None:
        known = model_calibration(run)
        theirs = known.tasks[0].decision
        if decision == "tiles" and theirs != "tiles":
            run.progress.note(
                f"key `predict.decision`: {folder} decides as calibrated, by `{theirs}`; set the key in the "
                "recipe of the run that trained it, and run `wsi-ips predict` there"
            )
        return known
    tasks, weights = read_card(folder).tasks, checkpoint_fingerprint(folder)
    try:
        known = read_calibration(folder, tasks, weights)
    except CheckpointError as error:
        run.progress.note(str(error))
        known = Calibration.default(tasks)
    validation = [r for r in run.records if r.split == "val"]
    done = {r.slide_id for r in predicted(run)}
    if any(run.states[r.slide_id].state == "ok" and r.slide_id not in done for r in validation):
        return known
    used = [r.slide_id for r in validation if r.slide_id in done]
    scores = [read_scores(run.folder.scores, name) for name in used]
    fitted = []
    for number, task in enumerate(tasks):
        targets = [run.targets[name][number] for name in used]
        fitted.append(fit_task(task, targets, [entry.decided(number, decision) for entry in scores], decision))
    found = Calibration(tuple(fitted))
    if found != known:
        write_calibration(folder, found, weights)
        write_predictions(run, found)
        for entry in found.tasks:
            if entry.note:
                run.progress.note(f"calibration of `{entry.task}`: {entry.note}")
    return found


def write_predictions(run: Run, calibration: Calibration) -> None:
    """Write ``predictions.csv``: one row per predicted slide, in the order of the manifest.

    Columns of the label: ``probability_CLASS`` (calibrated), ``raw_probability_CLASS`` (of the network), ``predicted``
    (with the threshold of the calibration), ``label`` (from the manifest). Further tasks have the same columns with
    ``NAME_`` in front. ``highest_tiles`` is a second opinion on the last class
    (:attr:`wsi_ips.inference.slide_scores.SlideScores.highest_tiles`).
    """
    rows = [_row(run, record, slide_scores(run, record, calibration)) for record in predicted(run)]
    tasks = [(_prefix(task.name), task) for task in run.recipe.labels.tasks]
    columns = ["slide_id"]
    for prefix, task in tasks:
        columns += [*(f"{prefix}probability_{c}" for c in task.classes), f"{prefix}predicted", f"{prefix}label"]
    columns += ["split", "tiles", "seconds", "highest_tiles"]
    columns += [f"{prefix}raw_probability_{c}" for prefix, task in tasks for c in task.classes]
    with atomic_path(run.folder.predictions) as temporary:
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False, lineterminator="\n")


def _row(run: Run, record: SlideRecord, scores: SlideScores) -> dict[str, object]:
    row: dict[str, object] = {"slide_id": record.slide_id}
    for task, verdict, truth in zip(scores.tasks, scores.verdicts, run.targets[record.slide_id], strict=True):
        prefix = _prefix(task.name)
        for kind, values in (("probability", verdict.probability), ("raw_probability", verdict.raw)):
            row |= {f"{prefix}{kind}_{c}": round(p, DIGITS) for c, p in zip(task.classes, values, strict=True)}
        row |= {f"{prefix}predicted": verdict.answer, f"{prefix}label": task.format(truth)}
    highest = round(scores.highest_tiles, DIGITS)
    tiles = len(scores.attention_logits)
    return row | {"split": record.split, "tiles": tiles, "seconds": scores.seconds, "highest_tiles": highest}


def _prefix(task: str) -> str:
    return "" if task == "label" else f"{task}_"
