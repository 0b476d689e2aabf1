"""Calibration of slide probabilities: measure, fit, apply and store it.

A model's calibration is a temperature and thresholds per task, fitted on validation slides. It is stored in
``calibration.json`` beside the model card: it is made after the training and changes no stored score.

Shapes: N slides, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats
from sklearn.linear_model import LogisticRegression

from wsi_ips.errors import CheckpointError, EvaluationError
from wsi_ips.evaluation.classification import Floats, both_classes, one_hot, split_scores
from wsi_ips.labels import Target, Task
from wsi_ips.provenance import atomic_write_json, fingerprint, parse_object

SCHEMA_VERSION = 1
CALIBRATION_NAME = "calibration.json"
DEFAULT_THRESHOLD = 0.5
LEAST_PROBABILITY = 1e-7
TEMPERATURES = (0.05, 20.0)  # range in which a temperature is searched
LEAST_SLIDES = 10  # validation slides of each class below which temperature and thresholds keep their defaults
LEAST_SLIDES_BY_TILES = 3  # the same for thresholds of slides decided by tiles, where the default means nothing
# How a slide is classified: from the pooled kept tiles, or from the highest single-tile probabilities.
DecisionName = Literal["pooled", "tiles"]


@dataclass(frozen=True)
class CalibrationSlope:
    """Agreement of predicted and observed frequencies."""

    slope: float  # of observed on predicted log-odds; 1 is ideal, below 1 the probabilities are too extreme
    intercept: float  # log-odds to add to all predictions so that their mean is the observed frequency


@dataclass(frozen=True)
class ReliabilityBin:
    """Slides of similar probability."""

    predicted: float  # mean probability
    observed: float  # share of positive slides, and its Wilson 95 % interval
    low: float
    high: float
    slides: int


@dataclass(frozen=True)
class TaskCalibration:
    """Calibration of one task."""

    task: str
    temperature: float  # T of ``softmax(log p / T)``; 1 leaves probabilities as they are
    # Calibrated probability from which a class is predicted: one for the last of two classes, one for each class of a
    # multi-label task, none with more than two classes, where the most probable one is predicted.
    thresholds: tuple[float, ...]
    slides: int = 0  # validation slides it was fitted on; 0 for the default
    note: str = ""  # why parts of it are defaults
    thresholds_from: Literal["validation", "default"] = "default"  # ``validation`` if any threshold was fitted
    decision: DecisionName = "pooled"

    @classmethod
    def default(cls, task: Task, note: str = "", decision: DecisionName = "pooled") -> TaskCalibration:
        """Return temperature 1 and thresholds 0.5."""
        thresholds = (DEFAULT_THRESHOLD,) * threshold_count(task)
        return cls(task.name, 1.0, thresholds, note=note, decision=decision)


@dataclass(frozen=True)
class Calibration:
    """Calibration of every task, in the checkpoint's task order."""

    tasks: tuple[TaskCalibration, ...]

    @classmethod
    def default(cls, tasks: Sequence[Task], note: str = "") -> Calibration:
        """Return the default calibration of every task."""
        return cls(tuple(TaskCalibration.default(task, note) for task in tasks))

    @property
    def hash(self) -> str:
        """Fingerprint of its effect, without notes and numbers of slides."""
        by_tiles = [t.task for t in self.tasks if t.decision == "tiles"]
        return fingerprint("calibration", [[t.task, t.temperature, t.thresholds] for t in self.tasks], *by_tiles)


def threshold_count(task: Task) -> int:
    """Return the number of thresholds that a task has."""
    if task.kind == "multi":
        return task.width
    return 1 if task.width == 2 else 0


def with_temperature(probability: NDArray[np.floating], temperature: float) -> Floats:
    """Return ``softmax(log p / T)``, shape (..., C); the order of the classes stays."""
    logits = np.log(np.maximum(probability, LEAST_PROBABILITY))
    return np.asarray(special.softmax(logits / temperature, axis=-1), np.float64)


def calibrated(task: Task, raw: tuple[float, ...], temperature: float) -> tuple[float, ...]:
    """Scale the class probabilities of a slide by temperature, each class on its own in a multi-label task."""
    if temperature == 1:
        return raw  # bit-identical
    values = np.array(raw, np.float64)  # (C,)
    if task.kind == "single":
        return tuple(with_temperature(values, temperature).tolist())
    return tuple(with_temperature(both_classes(values), temperature)[:, 1].tolist())


def fit_temperature(probability: NDArray[np.floating], truth: NDArray[np.integer]) -> float:
    """Return the temperature that makes the labels most likely (Guo et al., ICML 2017, section 4.2).

    ``probability`` has shape (N, C), ``truth`` has class numbers, shape (N,). An overconfident model has one above 1.
    It stays within :data:`TEMPERATURES`, because perfectly separated classes would give 0.
    """
    logits = np.log(np.maximum(probability, LEAST_PROBABILITY))

    def loss(log_temperature: float) -> float:
        scaled = special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(truth)), truth].mean())

    bounds = (float(np.log(TEMPERATURES[0])), float(np.log(TEMPERATURES[1])))
    return float(np.exp(optimize.minimize_scalar(loss, bounds=bounds, method="bounded").x))


def fixed_threshold(truth: ArrayLike, score: ArrayLike) -> float:
    """Return the threshold of the highest balanced accuracy (Youden, 1950); fit it on validation slides.

    Thresholds lie midway between neighbouring scores; of several equally good ones the middle one is taken.
    """
    positive, negative = split_scores(truth, score)
    values = np.unique(np.concatenate([positive, negative]))
    candidates = (values[:-1] + values[1:]) / 2 if len(values) > 1 else values
    balanced = np.array([(positive >= t).mean() + (negative < t).mean() for t in candidates])
    best = np.flatnonzero(np.isclose(balanced, balanced.max()))
    return float(candidates[best[len(best) // 2]])


def fit_task(
    task: Task, targets: Sequence[Target], probabilities: Sequence[tuple[float, ...]], decision: DecisionName = "pooled"
) -> TaskCalibration:
    """Fit temperature and thresholds of one task on uncalibrated probabilities of validation slides.

    Values with too few slides keep their defaults, and a note says so.
    """
    known = [(truth, p) for truth, p in zip(targets, probabilities, strict=True) if truth is not None]
    if not known:
        note = f"no validation slides: temperature 1, threshold {DEFAULT_THRESHOLD}"
        return TaskCalibration.default(task, note, decision)
    raw = np.array([p for _, p in known], np.float64).reshape(-1, task.width)  # (N, C)
    holds = one_hot(np.array([truth for truth, _ in known]), task.width)  # (N, C)
    notes: list[str] = []
    temperature = _fit_task_temperature(task, holds, raw, notes)
    scaled = np.array([calibrated(task, tuple(p), temperature) for p in raw.tolist()], np.float64)
    least = LEAST_SLIDES_BY_TILES if decision == "tiles" else LEAST_SLIDES
    thresholds, origin = _fit_thresholds(task, holds, scaled.reshape(-1, task.width), notes, least)
    return TaskCalibration(task.name, temperature, thresholds, len(known), "; ".join(notes), origin, decision)


def _fit_task_temperature(task: Task, holds: NDArray[np.bool_], raw: Floats, notes: list[str]) -> float:
    if task.kind == "single":
        counts, names = holds.sum(0).tolist(), task.classes
        rows, truth = raw, holds.argmax(1)
    else:  # every class of every slide is one yes-or-no row
        counts, names = [int(holds.sum()), int((~holds).sum())], ("yes", "no")
        rows, truth = both_classes(raw.ravel()), holds.ravel().astype(np.int64)
    if min(counts) < LEAST_SLIDES:
        shown = ", ".join(f"{count} {name}" for count, name in zip(counts, names, strict=True))
        notes.append(f"temperature 1: too few validation slides ({shown}; {LEAST_SLIDES} of each are needed)")
        return 1.0
    found = fit_temperature(rows, truth)
    low, high = TEMPERATURES
    if not 1.01 * low < found < 0.99 * high:
        # All slides right, or no better than chance: they do not tell how confident the model may be.
        notes.append("temperature 1: no finite one fits the validation slides (all right, or no better than chance)")
        return 1.0
    return found


def _fit_thresholds(
    task: Task, holds: NDArray[np.bool_], scaled: Floats, notes: list[str], least: int
) -> tuple[tuple[float, ...], Literal["validation", "default"]]:
    found: list[float] = []
    origin: Literal["validation", "default"] = "default"
    for number in range(task.width - threshold_count(task), task.width):  # the last class, all, or none
        truth = holds[:, number].astype(np.int64)
        fewest = min(int(truth.sum()), int((1 - truth).sum()))
        if fewest < least:
            notes.append(f"threshold of `{task.classes[number]}` {DEFAULT_THRESHOLD}: too few validation slides")
            found.append(DEFAULT_THRESHOLD)
            continue
        if fewest < LEAST_SLIDES:
            notes.append(f"threshold of `{task.classes[number]}`: from few validation slides, {fewest} of one kind")
        found.append(fixed_threshold(truth, scaled[:, number]))
        origin = "validation"
    return tuple(found), origin


def calibration_slope(truth: ArrayLike, score: ArrayLike) -> CalibrationSlope:
    """Return calibration slope and intercept (Cox, 1958); raises if the classes are perfectly separated."""
    positive, negative = split_scores(truth, score)
    if positive.min() > negative.max() or positive.max() < negative.min():
        raise EvaluationError("the classes are perfectly separated: there is no calibration slope")
    labels, scores = np.asarray(truth, int), np.asarray(score, np.float64)
    log_odds = special.logit(np.clip(scores, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY))
    fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(log_odds[:, None], labels)
    intercept = optimize.brentq(lambda shift: float((special.expit(log_odds + shift) - labels).sum()), -50, 50)
    return CalibrationSlope(float(fitted.coef_[0, 0]), float(intercept))


def reliability(truth: ArrayLike, score: ArrayLike, *, bins: int = 10) -> list[ReliabilityBin]:
    """Return predicted and observed frequency in at most ``bins`` bins of about equally many slides."""
    split_scores(truth, score)
    labels, scores = np.asarray(truth, int), np.asarray(score, np.float64)
    order = np.argsort(scores, kind="stable")
    found = []
    for part in np.array_split(order, min(bins, len(order))):
        count, hits = len(part), int(labels[part].sum())
        interval = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
        found.append(
            ReliabilityBin(float(scores[part].mean()), hits / count, float(interval.low), float(interval.high), count)
        )
    return found


def read_calibration(folder: Path, tasks: Sequence[Task], checkpoint: str) -> Calibration:
    """Read the calibration beside a checkpoint with this fingerprint; return the default where there is none.

    Raises
    ------
    CheckpointError
        The file is damaged, or was made for other weights.
    """
    path = folder / CALIBRATION_NAME
    advice = "delete it; `wsi-ips evaluate` of the run that trained the model makes it again"
    try:
        stored = parse_object(path.read_bytes())
    except FileNotFoundError:
        return Calibration.default(tasks, "the model has no calibration: temperature 1, threshold 0.5")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"calibration {path}: cannot be read ({error}); {advice}") from error
    try:
        if stored["schema_version"] != SCHEMA_VERSION:
            raise CheckpointError(f"calibration {path}: written by another version of wsi-ips; {advice}")
        if stored["checkpoint"] != checkpoint:
            raise CheckpointError(f"calibration {path}: made for other weights than those beside it; {advice}")
        entries = (TaskCalibration(**{**entry, "thresholds": tuple(entry["thresholds"])}) for entry in stored["tasks"])
        found = Calibration(tuple(entries))
        for task, entry in zip(tasks, found.tasks, strict=True):
            if entry.decision not in get_args(DecisionName):
                raise ValueError(f"task `{entry.task}` is decided by `{entry.decision}`")
            if task.name != entry.task or len(entry.thresholds) != threshold_count(task) or not entry.temperature > 0:
                raise ValueError(f"task `{entry.task}` does not match the model's `{task.name}`")
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"calibration {path}: damaged ({error}); {advice}") from error
    return found


def write_calibration(folder: Path, calibration: Calibration, checkpoint: str) -> None:
    """Write the calibration of the checkpoint with this fingerprint, atomically."""
    content = {"schema_version": SCHEMA_VERSION, "checkpoint": checkpoint, **asdict(calibration)}
    atomic_write_json(folder / CALIBRATION_NAME, content)
