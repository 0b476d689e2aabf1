"""Metrics of the slide scores of a test set. Shapes: N slides, C classes.

The truth and the answers of a single-label task are class numbers, shape (N,); those of a multi-label task say which
classes apply, bool, shape (N, C).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.calibration import (
    DEFAULT_THRESHOLD,
    CalibrationSlope,
    ReliabilityBin,
    calibration_slope,
    fit_temperature,
    fixed_threshold,
    reliability,
    with_temperature,
)
from wsi_ips.evaluation.classification import (
    Floats,
    Interval,
    both_classes,
    class_rates,
    one_hot,
    precision_recall,
    roc_curve,
    share_interval,
    slide_intervals,
    some_of,
)

SLIDES_OF_A_BIN = 8  # fewest slides in a bin of the reliability plot, where there are enough: two show only noise
FEW_SLIDES = 30  # fewer validation slides than this give a note
SITE_COLUMNS = ("centre", "center", "site", "scanner")  # columns that always make subgroups
LARGEST_LESION = "largest lesion"  # name of the subgroups by lesion size
Labels: TypeAlias = NDArray[np.integer] | NDArray[np.bool_]


@dataclass(frozen=True)
class Scored:
    """Slides with truth and score."""

    truth: NDArray[np.int64]  # (N,) 0 or 1
    score: Floats  # (N,) probability of 1
    patients: Sequence[str] | None = None  # patient of each slide, empty where unknown; None where all are unknown

    def __len__(self) -> int:
        return len(self.truth)

    def only(self, chosen: NDArray[np.bool_]) -> Scored:
        """Return the chosen slides, bool, shape (N,)."""
        return Scored(self.truth[chosen], self.score[chosen], some_of(self.patients, chosen))


@dataclass(frozen=True)
class Groups:
    """Subgroups of the test slides: the value of each slide by column."""

    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)  # columns that split all slides
    # columns that only positive slides have, such as the size of the lesion: each value is compared with all negative
    # slides, and slides with an empty value are left out
    of_positives: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Confusion:
    """Number of slides by truth and call at a threshold."""

    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int


@dataclass(frozen=True)
class Subgroup:
    """Metrics of the slides of one group; None where the group lacks a class."""

    name: str  # column
    value: str
    positives: int  # number of slides
    negatives: int
    auc: Interval | None
    sensitivity: Interval | None  # at the threshold of the whole test set
    specificity: Interval | None


@dataclass(frozen=True)
class SlideEvaluation:
    """Metrics of a test set."""

    threshold: float  # scores at or above it are called positive
    threshold_from: str  # ``given``, ``validation`` (highest balanced accuracy there) or ``default``
    metrics: dict[str, Interval]  # see slide_intervals
    confusion: Confusion  # at the threshold
    calibration: CalibrationSlope | None  # of the uncalibrated scores; None where the classes are perfectly separated
    temperature: float | None  # fitted on the validation slides; None without one
    calibrated: CalibrationSlope | None  # after temperature scaling
    reliability: list[ReliabilityBin]
    roc: tuple[list[float], list[float]]  # false and true positive rates over all thresholds
    precision_recall: tuple[list[float], list[float]]  # recall (from 0) and precision over all thresholds
    patients: int | None  # number of patients; None where patients are unknown
    subgroups: list[Subgroup]  # in the order of columns and values
    notes: tuple[str, ...]  # what could not be computed, and why


def evaluate_slides(
    test: Scored, validation: Scored | None = None, *, groups: Groups | None = None, threshold: float | None = None
) -> SlideEvaluation:
    """Measure the test slides with a threshold and a temperature that were not fitted on them.

    A given threshold replaces that of the validation slides; without both it is 0.5.

    Raises
    ------
    EvaluationError
        The test slides have only one class, or scores are not probabilities.
    """
    notes: list[str] = []
    chosen, origin = _threshold(validation, threshold, notes)
    temperature, calibrated = None, None
    if validation is not None and len(validation):
        if len(validation) < FEW_SLIDES and threshold is None:
            notes.append(
                f"threshold and temperature come from only {len(validation)} validation slides and may be far off"
            )
        temperature = _temperature(validation, notes)
    if temperature is not None:
        calibrated = _calibration(test.truth, with_temperature(both_classes(test.score), temperature)[:, 1], [])
    (false, true), (recall, precision) = roc_curve(test.truth, test.score), precision_recall(test.truth, test.score)
    counts = metrics.confusion_matrix(test.truth == 1, test.score >= chosen, labels=[True, False])
    return SlideEvaluation(
        threshold=chosen,
        threshold_from=origin,
        metrics=slide_intervals(test.truth, test.score, threshold=chosen, patients=test.patients),
        confusion=Confusion(*counts.ravel().tolist()),
        calibration=_calibration(test.truth, test.score, notes),
        temperature=temperature,
        calibrated=calibrated,
        reliability=reliability(test.truth, test.score, bins=min(10, max(3, len(test) // SLIDES_OF_A_BIN))),
        roc=(false.tolist(), true.tolist()),
        precision_recall=(recall.tolist(), precision.tolist()),
        patients=_patient_count(test.patients),
        subgroups=_subgroups(groups or Groups(), test, chosen),
        notes=tuple(notes),
    )


def with_frozen_temperature(found: SlideEvaluation, raw: Scored, temperature: float) -> SlideEvaluation:
    """Return metrics of calibrated scores with the calibration of the ``raw`` ones and a temperature set elsewhere."""
    if temperature == 1:
        return found
    before = found.calibration
    with suppress(EvaluationError):  # the calibrated scores have the same reason, and a note on it
        before = calibration_slope(raw.truth, raw.score)
    return replace(found, calibration=before, temperature=temperature, calibrated=found.calibration)


def group_columns(rows: Sequence[Mapping[str, str]], by: Sequence[str]) -> dict[str, list[str]]:
    """Return subgroup values per slide: the columns asked for, and columns of sites with more than one value."""
    columns = {name: [row.get(name) or "(empty)" for row in rows] for name in (*by, *SITE_COLUMNS)}
    return {name: values for name, values in columns.items() if name in by or len(set(values)) > 1}


def _threshold(validation: Scored | None, given: float | None, notes: list[str]) -> tuple[float, str]:
    if given is not None:
        return given, "given"
    if validation is None or not len(validation):
        notes.append(f"no validation slides: the threshold is {DEFAULT_THRESHOLD}, and there is no temperature")
        return DEFAULT_THRESHOLD, "default"
    try:
        return fixed_threshold(validation.truth, validation.score), "validation"
    except EvaluationError as error:
        notes.append(f"validation slides set no threshold ({error}): it is {DEFAULT_THRESHOLD}")
        return DEFAULT_THRESHOLD, "default"


def _temperature(validation: Scored, notes: list[str]) -> float | None:
    """Fit a temperature; None with perfect separation, where the lower the temperature the better the fit."""
    positive, negative = validation.score[validation.truth == 1], validation.score[validation.truth == 0]
    if not len(positive) or not len(negative) or positive.min() > negative.max():
        notes.append("validation slides set no temperature: the classes are perfectly separated, or one is missing")
        return None
    return fit_temperature(both_classes(validation.score), validation.truth)


def _calibration(truth: NDArray[np.int64], score: Floats, notes: list[str]) -> CalibrationSlope | None:
    try:
        return calibration_slope(truth, score)
    except EvaluationError as error:
        notes.append(f"no calibration slope: {error}")
        return None


def _subgroups(groups: Groups, test: Scored, threshold: float) -> list[Subgroup]:
    found, positive = [], test.truth == 1
    for name, values in groups.columns.items():
        column = np.array(values)
        found += [_subgroup(name, value, test.only(column == value), threshold) for value in sorted(set(values))]
    for name, values in groups.of_positives.items():
        column = np.array(values)
        for value in sorted(set(column[positive].tolist()) - {""}):
            group = _subgroup(name, value, test.only(~positive | (column == value)), threshold)
            found.append(replace(group, specificity=None))  # it is that of all negative slides, not of the group
    return found


def _subgroup(name: str, value: str, here: Scored, threshold: float) -> Subgroup:
    return Subgroup(name, value, *class_rates(here.truth == 1, here.score >= threshold, here.score, here.patients))


def _patient_count(patients: Sequence[str] | None) -> int | None:
    """Count patients; each slide without a name counts as one."""
    named = [patient for patient in patients or () if patient]
    return len(set(named)) + len(patients or ()) - len(named) if named else None


@dataclass(frozen=True)
class TaskFigures:
    """Accuracy and AUC of a task, without intervals."""

    # Single-label: share of slides whose most probable class is the true one. Multi-label: share of (slide, class)
    # pairs that are right at probability 0.5.
    accuracy: float
    auc: float | None  # mean one-vs-rest AUC of the classes that have slides with and without them
    slides: int


@dataclass(frozen=True)
class ClassFigures:
    """Metrics of one class against the rest; None where all slides or none have it."""

    name: str
    positives: int  # slides with the class
    negatives: int
    auc: Interval | None
    found: Interval | None  # sensitivity
    others_right: Interval | None  # specificity


@dataclass(frozen=True)
class TaskEvaluation:
    """Metrics of one task."""

    name: str
    kind: str  # ``single``: exactly one class applies; ``multi``: any number
    slides: int  # slides with a known answer
    accuracy: Interval  # share of slides with an entirely correct answer
    share_right: float  # the same for a ``single`` task; share of right (slide, class) pairs for a ``multi`` task
    mean_auc: float | None
    kappa: float | None  # Cohen's kappa of a ``single`` task; None for others and where it is undefined
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]  # slides by true class (rows) and answer (columns); empty for ``multi``


def task_figures(truth: Labels, probability: NDArray[np.floating]) -> TaskFigures:
    """Return accuracy and mean AUC of a task; ``probability`` has shape (N, C)."""
    if probability.ndim != 2 or not len(probability) or truth.shape != probability.shape[: truth.ndim]:
        raise EvaluationError(
            f"truth of shape {truth.shape} and probabilities of shape {probability.shape} do not match"
        )
    if not np.isfinite(probability).all():
        raise EvaluationError(f"{int((~np.isfinite(probability)).sum())} probabilities are not finite; predict again")
    classes = probability.shape[1]
    if truth.ndim == 1 and not ((truth >= 0) & (truth < classes)).all():
        raise EvaluationError(f"class numbers range from {truth.min()} to {truth.max()}; there are {classes} classes")
    holds = one_hot(truth, classes)  # (N, C)
    right = _answers(truth, probability) == truth
    varied = np.flatnonzero(holds.any(0) & ~holds.all(0))
    aucs = [float(metrics.roc_auc_score(holds[:, c], probability[:, c])) for c in varied]
    return TaskFigures(float(right.mean()), float(np.mean(aucs)) if aucs else None, len(truth))


def evaluate_task(
    name: str,
    classes: Sequence[str],
    truth: Labels,
    probability: NDArray[np.floating],
    patients: Sequence[str] | None = None,
    answers: Labels | None = None,
) -> TaskEvaluation:
    """Return all metrics of a task, with intervals.

    ``probability`` has shape (N, C). Without ``answers`` the most probable class is predicted, or all at 0.5 or above.
    """
    plain = task_figures(truth, probability)
    single = truth.ndim == 1
    called = _answers(truth, probability) if answers is None else answers
    holds, given = one_hot(truth, len(classes)), one_hot(called, len(classes))  # (N, C)
    confusion = metrics.confusion_matrix(truth, called, labels=np.arange(len(classes))) if single else np.zeros((0, 0))
    varied = single and len({*truth.tolist(), *called.tolist()}) > 1
    entirely = (holds == given).all(1)
    return TaskEvaluation(
        name,
        "single" if single else "multi",
        len(truth),
        share_interval(entirely, patients),
        float(entirely.mean() if single else (holds == given).mean()),
        plain.auc,
        float(metrics.cohen_kappa_score(truth, called)) if varied else None,
        tuple(
            ClassFigures(c, *class_rates(holds[:, i], given[:, i], probability[:, i], patients))
            for i, c in enumerate(classes)
        ),
        tuple(tuple(int(cell) for cell in row) for row in confusion.tolist()),
    )


def _answers(truth: Labels, probability: NDArray[np.floating]) -> Labels:
    """Return the predicted classes in the form of ``truth``."""
    return probability.argmax(1) if truth.ndim == 1 else probability >= 0.5
