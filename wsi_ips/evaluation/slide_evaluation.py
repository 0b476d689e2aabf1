"""Everything reported about the slide scores of a test set. Shapes: N slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.calibration import (
    CalibrationSlope,
    ReliabilityBin,
    calibration_slope,
    fit_temperature,
    fixed_threshold,
    reliability,
    with_temperature,
)
from wsi_ips.evaluation.classification import Floats, Interval, precision_recall, roc_curve
from wsi_ips.evaluation.intervals import class_rates, slide_intervals, some_of

DEFAULT_THRESHOLD = 0.5
SLIDES_OF_A_BIN = 8
"""Least number of slides in a bin of the reliability plot, where there are enough: two slides show only noise."""
FEW_SLIDES = 30
"""Fewer validation slides than this give a note."""
SITE_COLUMNS = ("centre", "center", "site", "scanner")
"""Columns that make subgroups without being asked for."""
LARGEST_LESION = "largest lesion"
"""Name of the subgroups by lesion size."""


@dataclass(frozen=True)
class Scored:
    """Slides with truth and score."""

    truth: NDArray[np.int64]  # 0 or 1, shape (N,)
    score: Floats  # probability of 1, shape (N,)
    patients: Sequence[str] | None = None  # patient of each slide, empty where unknown; None where all are unknown

    def __len__(self) -> int:
        return len(self.truth)

    def only(self, chosen: NDArray[np.bool_]) -> Scored:
        """Return some of the slides; ``chosen`` is bool, shape (N,)."""
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

    # name, value: column and its value
    name: str
    value: str
    # positives, negatives: number of slides
    positives: int
    negatives: int
    auc: Interval | None  # AUC within the group
    # sensitivity, specificity: at the threshold of the whole test set
    sensitivity: Interval | None
    specificity: Interval | None


@dataclass(frozen=True)
class SlideEvaluation:
    """Metrics of a test set."""

    # threshold, threshold_from: scores at or above it are called positive; ``given``, ``validation`` (highest
    # balanced accuracy there) or ``default``
    threshold: float
    threshold_from: str
    metrics: dict[str, Interval]  # metrics with intervals, see :func:`wsi_ips.evaluation.slide_intervals`
    confusion: Confusion  # confusion matrix at the threshold
    # calibration of the uncalibrated scores; None where the classes are perfectly separated
    calibration: CalibrationSlope | None
    temperature: float | None  # temperature fitted on the validation slides; None without one
    calibrated: CalibrationSlope | None  # calibration after temperature scaling
    reliability: list[ReliabilityBin]  # predicted against observed frequency
    roc: tuple[list[float], list[float]]  # false and true positive rates over all thresholds
    precision_recall: tuple[list[float], list[float]]  # recall (from 0) and precision over all thresholds
    patients: int | None  # number of patients; None where patients are unknown
    subgroups: list[Subgroup]  # in the order of columns and values
    notes: tuple[str, ...]  # what could not be computed, and why


def evaluate_slides(
    test: Scored, validation: Scored | None = None, *, groups: Groups | None = None, threshold: float | None = None
) -> SlideEvaluation:
    """Measure the test slides with a threshold and a temperature that have not seen them.

    Parameters
    ----------
    test
        Slides to report on.
    validation
        Slides that set threshold and temperature.
    groups
        Subgroups of the test slides.
    threshold
        Threshold in place of the one from the validation slides; without both it is 0.5.

    Raises
    ------
    EvaluationError
        The test slides have only one class, or scores are no probabilities.
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
        calibrated = _calibration(test.truth, with_temperature(_both(test.score), temperature)[:, 1], [])
    return SlideEvaluation(
        threshold=chosen,
        threshold_from=origin,
        metrics=slide_intervals(test.truth, test.score, threshold=chosen, patients=test.patients),
        confusion=_confusion(test.truth == 1, test.score >= chosen),
        calibration=_calibration(test.truth, test.score, notes),
        temperature=temperature,
        calibrated=calibrated,
        reliability=reliability(test.truth, test.score, bins=min(10, max(3, len(test) // SLIDES_OF_A_BIN))),
        roc=_lists(roc_curve(test.truth, test.score)),
        precision_recall=_lists(precision_recall(test.truth, test.score)),
        patients=_patient_count(test.patients),
        subgroups=_subgroups(groups or Groups(), test, chosen),
        notes=tuple(notes),
    )


def with_frozen_temperature(found: SlideEvaluation, raw: Scored, temperature: float) -> SlideEvaluation:
    """Return metrics of calibrated scores with the calibration before and after a temperature set elsewhere.

    Parameters
    ----------
    found
        Metrics of the calibrated scores.
    raw
        The same slides with their uncalibrated scores.
    temperature
        What turned one into the other; at 1 nothing changes.
    """
    if temperature == 1:
        return found
    before = None
    with suppress(EvaluationError):  # the calibrated scores have the same reason, and a note on it
        before = calibration_slope(raw.truth, raw.score)
    return replace(
        found,
        calibration=before or found.calibration,
        temperature=temperature,
        calibrated=found.calibration,
    )


def group_columns(rows: Sequence[Mapping[str, str]], by: Sequence[str]) -> dict[str, list[str]]:
    """Return subgroup values per slide: the columns asked for, and columns of sites with more than one value."""
    columns = {name: [row.get(name) or "(empty)" for row in rows] for name in (*by, *SITE_COLUMNS)}
    return {name: values for name, values in columns.items() if name in by or len(set(values)) > 1}


def _both(score: Floats) -> Floats:
    """Return probabilities of 0 and of 1, shape (N, 2)."""
    return np.stack([1 - score, score], axis=1)


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
    return fit_temperature(_both(validation.score), validation.truth)


def _calibration(truth: NDArray[np.int64], score: Floats, notes: list[str]) -> CalibrationSlope | None:
    try:
        return calibration_slope(truth, score)
    except EvaluationError as error:
        notes.append(f"no calibration slope: {error}")
        return None


def _confusion(positive: NDArray[np.bool_], called: NDArray[np.bool_]) -> Confusion:
    return Confusion(
        int((positive & called).sum()),
        int((positive & ~called).sum()),
        int((~positive & called).sum()),
        int((~positive & ~called).sum()),
    )


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


def _lists(curve: tuple[Floats, Floats]) -> tuple[list[float], list[float]]:
    return curve[0].tolist(), curve[1].tolist()


def _patient_count(patients: Sequence[str] | None) -> int | None:
    """Count patients; each slide without a name counts as one."""
    named = [patient for patient in patients or () if patient]
    return len(set(named)) + len(patients or ()) - len(named) if named else None
