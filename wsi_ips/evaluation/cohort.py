"""Everything that is said of the slide scores of a cohort: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.calibration import (
    Calibration,
    ReliabilityBin,
    calibration,
    fit_temperature,
    fixed_threshold,
    reliability,
    with_temperature,
)
from wsi_ips.evaluation.intervals import slide_intervals
from wsi_ips.evaluation.slide import Floats, Interval, auc_with_interval

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Scored:
    """Slides with truth and score.

    Attributes
    ----------
    truth
        0 or 1, shape (N,).
    score
        Probability of 1, shape (N,).
    """

    truth: NDArray[np.int64]
    score: Floats

    def __len__(self) -> int:
        return len(self.truth)


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
        At the threshold of the whole cohort.
    """

    name: str
    value: str
    positives: int
    negatives: int
    auc: Interval | None
    sensitivity: float | None
    specificity: float | None


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
        That fits the validation slides; None without any.
    calibrated
        Calibration after that temperature.
    reliability
        Predicted against observed frequency.
    subgroups
        In the order of columns and values.
    notes
        What could not be computed, and why.
    """

    threshold: float
    threshold_from: str
    metrics: dict[str, Interval]
    confusion: Confusion
    calibration: Calibration | None
    temperature: float | None
    calibrated: Calibration | None
    reliability: list[ReliabilityBin]
    subgroups: list[Subgroup]
    notes: tuple[str, ...]


def evaluate_slides(
    test: Scored,
    validation: Scored | None = None,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
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
        temperature = fit_temperature(_both(validation.score), validation.truth)
        calibrated = _calibration(test.truth, with_temperature(_both(test.score), temperature)[:, 1], [])
    return SlideEvaluation(
        threshold=chosen,
        threshold_from=origin,
        metrics=slide_intervals(test.truth, test.score, threshold=chosen),
        confusion=Confusion(
            int((is_positive & called).sum()),
            int((is_positive & ~called).sum()),
            int((~is_positive & called).sum()),
            int((~is_positive & ~called).sum()),
        ),
        calibration=_calibration(test.truth, test.score, notes),
        temperature=temperature,
        calibrated=calibrated,
        reliability=reliability(test.truth, test.score),
        subgroups=[s for name, values in (groups or {}).items() for s in _subgroups(name, values, test, chosen)],
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


def _calibration(truth: NDArray[np.int64], score: Floats, notes: list[str]) -> Calibration | None:
    try:
        return calibration(truth, score)
    except EvaluationError as error:
        notes.append(f"no calibration slope: {error}")
        return None


def _subgroups(name: str, values: Sequence[str], test: Scored, threshold: float) -> list[Subgroup]:
    column = np.array(values)
    found = []
    for value in sorted(set(values)):
        here = column == value
        positive, negative = test.score[here & (test.truth == 1)], test.score[here & (test.truth == 0)]
        both = len(positive) > 0 and len(negative) > 0
        found.append(
            Subgroup(
                name,
                value,
                len(positive),
                len(negative),
                auc_with_interval(test.truth[here], test.score[here]) if both else None,
                float((positive >= threshold).mean()) if len(positive) else None,
                float((negative < threshold).mean()) if len(negative) else None,
            )
        )
    return found
