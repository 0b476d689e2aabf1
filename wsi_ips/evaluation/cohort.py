"""Everything that is said of the slide scores of a cohort: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
from wsi_ips.evaluation.intervals import share_interval, slide_intervals
from wsi_ips.evaluation.slide import Floats, Interval, auc_with_interval, precision_recall, roc_curve

DEFAULT_THRESHOLD = 0.5
SLIDES_OF_A_BIN = 8
"""At least so many make a bin of the reliability plot, where there are enough: with two slides it shows noise."""
FEW_SLIDES = 30
"""Fewer validation slides are told."""


@dataclass(frozen=True)
class Scored:
    """Slides with truth and score.

    Attributes
    ----------
    truth
        0 or 1, shape (N,).
    score
        Probability of 1, shape (N,).
    patients
        Patient of each slide, empty where not known; None where none is.
    """

    truth: NDArray[np.int64]
    score: Floats
    patients: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.truth)

    def only(self, chosen: NDArray[np.bool_]) -> Scored:
        """Some of the slides; ``chosen`` is bool, shape (N,)."""
        patients = None if self.patients is None else [self.patients[i] for i in np.flatnonzero(chosen).tolist()]
        return Scored(self.truth[chosen], self.score[chosen], patients)


@dataclass(frozen=True)
class Confusion:
    """Slides by truth and call at a threshold."""

    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int


@dataclass(frozen=True)
class Subgroup:
    """Figures of the slides of one group; None where it lacks one of the classes.

    Attributes
    ----------
    name, value
        Column and its value.
    positives, negatives
        Slides.
    auc
        With its interval.
    sensitivity, specificity
        At the threshold of the whole cohort, with their intervals.
    """

    name: str
    value: str
    positives: int
    negatives: int
    auc: Interval | None
    sensitivity: Interval | None
    specificity: Interval | None


@dataclass(frozen=True)
class SlideEvaluation:
    """Figures of a test set.

    Attributes
    ----------
    threshold, threshold_from
        Scores from it on are called positive; ``given``, ``validation`` (of the highest balanced accuracy there) or
        ``default``.
    metrics
        Figures with intervals, as :func:`wsi_ips.evaluation.slide_intervals` gives them.
    confusion
        At the threshold.
    calibration
        Of the scores as they are; None where the classes are separated wholly.
    temperature
        That fits the validation slides; None where they fix none.
    calibrated
        Calibration after that temperature.
    reliability
        Predicted against observed frequency.
    roc
        False and true positive rates at all thresholds.
    precision_recall
        Recall and precision at all thresholds, from recall 0 on.
    patients
        How many the test slides are of; None where patients are not known.
    subgroups
        In the order of columns and values.
    notes
        What could not be computed, and why.
    """

    threshold: float
    threshold_from: str
    metrics: dict[str, Interval]
    confusion: Confusion
    calibration: CalibrationSlope | None
    temperature: float | None
    calibrated: CalibrationSlope | None
    reliability: list[ReliabilityBin]
    roc: tuple[list[float], list[float]]
    precision_recall: tuple[list[float], list[float]]
    patients: int | None
    subgroups: list[Subgroup]
    notes: tuple[str, ...]


def evaluate_slides(
    test: Scored,
    validation: Scored | None = None,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    positive_groups: Mapping[str, Sequence[str]] | None = None,
    threshold: float | None = None,
) -> SlideEvaluation:
    """Figures of the test slides, with a threshold and a temperature that have not seen them.

    Parameters
    ----------
    test
        Slides to report on.
    validation
        Slides that fix threshold and temperature.
    groups
        Value of each test slide by column.
    positive_groups
        The same for what only positive slides have, as the size of a lesion: each value is compared with all negative
        slides, and slides whose value is empty are left out.
    threshold
        Given from outside; None takes it from the validation slides, else 0.5.

    Raises
    ------
    EvaluationError
        The test slides are of one class only, or scores are no probabilities.
    """
    notes: list[str] = []
    chosen, origin = _threshold(validation, threshold, notes)
    called = test.score >= chosen
    is_positive = test.truth == 1
    temperature, calibrated = None, None
    if validation is not None and len(validation):
        if len(validation) < FEW_SLIDES and threshold is None:
            notes.append(f"threshold and temperature rest on {len(validation)} validation slides: they may be far off")
        temperature = _temperature(validation, notes)
    if temperature is not None:
        calibrated = _calibration(test.truth, with_temperature(_both(test.score), temperature)[:, 1], [])
    known = test.patients is not None and any(test.patients)
    return SlideEvaluation(
        threshold=chosen,
        threshold_from=origin,
        metrics=slide_intervals(test.truth, test.score, threshold=chosen, patients=test.patients),
        confusion=Confusion(
            int((is_positive & called).sum()),
            int((is_positive & ~called).sum()),
            int((~is_positive & called).sum()),
            int((~is_positive & ~called).sum()),
        ),
        calibration=_calibration(test.truth, test.score, notes),
        temperature=temperature,
        calibrated=calibrated,
        reliability=reliability(test.truth, test.score, bins=min(10, max(3, len(test) // SLIDES_OF_A_BIN))),
        roc=_lists(roc_curve(test.truth, test.score)),
        precision_recall=_lists(precision_recall(test.truth, test.score)),
        patients=_patients(test.patients) if known else None,
        subgroups=[
            *[s for name, values in (groups or {}).items() for s in _subgroups(name, values, test, chosen)],
            *[
                s
                for name, values in (positive_groups or {}).items()
                for s in _positive_subgroups(name, values, test, chosen)
            ],
        ],
        notes=tuple(notes),
    )


def _both(score: Floats) -> Floats:
    """Probabilities of 0 and of 1, shape (N, 2)."""
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
        notes.append(f"validation slides fix no threshold ({error}): it is {DEFAULT_THRESHOLD}")
        return DEFAULT_THRESHOLD, "default"


def _temperature(validation: Scored, notes: list[str]) -> float | None:
    """Temperature of the validation slides; None where any small one would do, because they are told apart wholly."""
    positive, negative = validation.score[validation.truth == 1], validation.score[validation.truth == 0]
    if not len(positive) or not len(negative) or positive.min() > negative.max():
        notes.append("validation slides fix no temperature: the classes are separated wholly, or one is missing")
        return None
    return fit_temperature(_both(validation.score), validation.truth)


def _calibration(truth: NDArray[np.int64], score: Floats, notes: list[str]) -> CalibrationSlope | None:
    try:
        return calibration_slope(truth, score)
    except EvaluationError as error:
        notes.append(f"no calibration slope: {error}")
        return None


def _subgroups(name: str, values: Sequence[str], test: Scored, threshold: float) -> list[Subgroup]:
    column = np.array(values)
    return [_subgroup(name, value, test.only(column == value), threshold) for value in sorted(set(values))]


def _positive_subgroups(name: str, values: Sequence[str], test: Scored, threshold: float) -> list[Subgroup]:
    """Positive slides of each value against all negative ones."""
    column, positive = np.array(values), test.truth == 1
    found = []
    for value in sorted(set(column[positive].tolist()) - {""}):
        group = _subgroup(name, value, test.only(~positive | (column == value)), threshold)
        found.append(replace(group, specificity=None))  # of all negative slides: it says nothing of the group
    return found


def _subgroup(name: str, value: str, here: Scored, threshold: float) -> Subgroup:
    positive = here.truth == 1
    called = here.score >= threshold

    def rate(chosen: NDArray[np.bool_], right: NDArray[np.bool_]) -> Interval | None:
        part = here.only(chosen)
        return share_interval(right[chosen], part.patients) if len(part) else None

    both = bool(positive.any() and (~positive).any())
    return Subgroup(
        name,
        value,
        int(positive.sum()),
        int((~positive).sum()),
        auc_with_interval(here.truth, here.score) if both else None,
        rate(positive, called),
        rate(~positive, ~called),
    )


def _lists(curve: tuple[Floats, Floats]) -> tuple[list[float], list[float]]:
    return curve[0].tolist(), curve[1].tolist()


def _patients(patients: Sequence[str] | None) -> int:
    """Patients, those slides that name none counted one by one."""
    named = [patient for patient in patients or () if patient]
    return len(set(named)) + len(patients or ()) - len(named)
