"""Temperature and thresholds of a run's model, from its validation slides; the one place that writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import CheckpointError
from wsi_ips.evaluation import fit_temperature, fixed_threshold
from wsi_ips.evaluation.calibration import TEMPERATURES
from wsi_ips.inference import read_scores
from wsi_ips.inference.verdict import calibrated
from wsi_ips.labels import Task, Truth
from wsi_ips.model.calibration import (
    DEFAULT_THRESHOLD,
    Calibration,
    DecisionName,
    TaskCalibration,
    read_calibration,
    threshold_count,
    write_calibration,
)
from wsi_ips.model.card import checkpoint_fingerprint, read_card
from wsi_ips.pipeline.prediction.predictions import write_predictions
from wsi_ips.pipeline.prediction.scored import checkpoint_folder, model_calibration, predicted
from wsi_ips.pipeline.run import Run

LEAST_SLIDES = 10
"""Validation slides of each class below which temperature and thresholds stay at their defaults."""
LEAST_SLIDES_BY_TILES = 3
"""The same for thresholds of slides decided by their tiles, whose default is worth nothing."""
Floats = NDArray[np.float64]


def calibrate(run: Run) -> Calibration:
    """The calibration of the run's model, made and written beside it where the run trained it.

    A model from elsewhere keeps its own. It is made from all labelled slides of split ``val`` and only when all of them
    that have tiles are predicted, so that it does not depend on which slides were asked for first.
    """
    folder = checkpoint_folder(run)
    if run.recipe.predict.checkpoint is not None:
        known = model_calibration(run)
        if run.recipe.predict.decision == "tiles" and known.tasks[0].decision != "tiles":
            run.progress.note(
                f"key `predict.decision`: {folder} decides as it was calibrated to, `{known.tasks[0].decision}`; set "
                "the key in the recipe of the run that trained it, and run `wsi-ips predict` there"
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
    scores, decision = [read_scores(run.folder.scores, name) for name in used], run.recipe.predict.decision
    found = Calibration(
        tuple(
            fit_task(
                task,
                [run.truths[name][number] for name in used],
                [entry.decided(number, decision) for entry in scores],
                decision,
            )
            for number, task in enumerate(tasks)
        )
    )
    if found != known:
        write_calibration(folder, found, weights)
        write_predictions(run, found)
        for entry in found.tasks:
            if entry.note:
                run.progress.note(f"calibration of `{entry.task}`: {entry.note}")
    return found


def fit_task(
    task: Task,
    truths: Sequence[Truth],
    probabilities: Sequence[tuple[float, ...]],
    decision: DecisionName = "pooled",
) -> TaskCalibration:
    """Temperature and thresholds of one task.

    Parameters
    ----------
    task
        The task.
    truths
        Of the validation slides; None where not known.
    probabilities
        Of the same slides, not calibrated.
    decision
        What they are of.

    Returns
    -------
    TaskCalibration
        With what has too few slides at its default, and a note that says so.
    """
    known = [(truth, p) for truth, p in zip(truths, probabilities, strict=True) if truth is not None]
    if not known:
        note = f"no validation slides: temperature 1, threshold {DEFAULT_THRESHOLD}"
        return TaskCalibration.default(task, note, decision)
    raw = np.array([p for _, p in known], np.float64).reshape(-1, task.width)  # (N, C)
    if task.kind == "single":
        holds = np.array([truth for truth, _ in known], np.int64)[:, None] == np.arange(task.width)  # (N, C)
    else:
        holds = np.array([truth for truth, _ in known], bool).reshape(-1, task.width)
    notes: list[str] = []
    temperature = _temperature(task, holds, raw, notes)
    scaled = np.array([calibrated(task, tuple(p), temperature) for p in raw.tolist()], np.float64)
    least = LEAST_SLIDES_BY_TILES if decision == "tiles" else LEAST_SLIDES
    thresholds, origin = _thresholds(task, holds, scaled.reshape(-1, task.width), notes, least)
    return TaskCalibration(task.name, temperature, thresholds, len(known), "; ".join(notes), origin, decision)


def _temperature(task: Task, holds: NDArray[np.bool_], raw: Floats, notes: list[str]) -> float:
    if task.kind == "single":
        counts = holds.sum(0).tolist()
        rows, truth = raw, holds.argmax(1)
    else:  # every class of every slide is a yes or a no
        counts = [int(holds.sum()), int((~holds).sum())]
        rows, truth = np.stack([1 - raw.ravel(), raw.ravel()], 1), holds.ravel().astype(np.int64)
    if min(counts) < LEAST_SLIDES:
        what = task.classes if task.kind == "single" else ("yes", "no")
        told = ", ".join(f"{count} {name}" for count, name in zip(counts, what, strict=True))
        notes.append(f"temperature 1: too few validation slides ({told}; {LEAST_SLIDES} of each are needed)")
        return 1.0
    found = fit_temperature(rows, truth)
    low, high = TEMPERATURES
    if not 1.01 * low < found < 0.99 * high:
        # All right, or no better than chance: nothing in these slides says how sure the model may be.
        notes.append("temperature 1: the validation slides ask for none that is finite (all right, or at random)")
        return 1.0
    return found


def _thresholds(
    task: Task, holds: NDArray[np.bool_], scaled: Floats, notes: list[str], least: int
) -> tuple[tuple[float, ...], Literal["validation", "default"]]:
    found: list[float] = []
    origin: Literal["validation", "default"] = "default"
    for number in range(task.width - threshold_count(task), task.width):  # the last one, all, or none
        truth = holds[:, number].astype(np.int64)
        fewest = min(int(truth.sum()), int((1 - truth).sum()))
        if fewest < least:
            notes.append(f"threshold of `{task.classes[number]}` {DEFAULT_THRESHOLD}: too few validation slides")
            found.append(DEFAULT_THRESHOLD)
        else:
            if fewest < LEAST_SLIDES:
                notes.append(f"threshold of `{task.classes[number]}`: from few validation slides, {fewest} of one kind")
            found.append(fixed_threshold(truth, scaled[:, number]))
            origin = "validation"
    return tuple(found), origin
