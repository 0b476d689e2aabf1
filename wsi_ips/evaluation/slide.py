"""Figures of slide-level prediction: numbers in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn import metrics

from wsi_ips.errors import EvaluationError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval.

    Attributes
    ----------
    value, low, high
        The figure and the ends of its interval.
    positives, negatives
        Cases it rests on.
    method
        How the interval was made.
    """

    value: float
    low: float
    high: float
    positives: int
    negatives: int
    method: str


def auc_with_interval(truth: ArrayLike, score: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Area under the ROC curve with an interval.

    DeLong's variance (DeLong et al., 1988) by midranks (Sun and Xu, 2014), the interval taken on the logit
    scale so that it stays inside 0-1. Where the classes are separated wholly the variance is 0 and says
    nothing; then the interval is the exact binomial one (Clopper and Pearson, 1934) of ``min(P, N)``
    pairs, each of a positive and a negative of its own, all in the right order: conservative, and never
    of zero width. Where the variance is 0 for want of anything to compare (all scores equal, or a single
    case of a class) the interval is 0-1, method ``undetermined``.

    Parameters
    ----------
    truth
        0 or 1, shape (N,).
    score
        Higher means more likely 1, shape (N,).
    confidence
        Coverage of the interval.

    Raises
    ------
    EvaluationError
        One class only, different lengths, or a score that is not finite.
    """
    positive, negative = split_scores(truth, score)
    value, variance = _delong(positive, negative)
    tail = (1 - confidence) / 2
    counts = (len(positive), len(negative))
    if variance <= 0 and 0 < value < 1:
        return Interval(value, 0.0, 1.0, *counts, "undetermined")
    if variance <= 0:
        pairs = min(counts)
        low = tail ** (1 / pairs) if value == 1 else 0.0
        high = 1 - tail ** (1 / pairs) if value == 0 else 1.0
        return Interval(value, low, high, *counts, "Clopper-Pearson")
    logit = np.log(value / (1 - value))
    half = stats.norm.isf(tail) * variance**0.5 / (value * (1 - value))
    low, high = (1 / (1 + np.exp(-np.array([logit - half, logit + half])))).tolist()
    return Interval(value, low, high, *counts, "DeLong")


def roc_curve(truth: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """False and true positive rate at every threshold, both from 0 to 1.

    Raises
    ------
    EvaluationError
        As :func:`auc_with_interval`.
    """
    split_scores(truth, score)
    false, true, _ = metrics.roc_curve(np.asarray(truth), np.asarray(score, np.float64))
    return false, true


def precision_recall(truth: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """Recall and precision at every threshold, recall from 0 to 1; the precision at 0 is that of the highest score.

    Raises
    ------
    EvaluationError
        As :func:`auc_with_interval`.
    """
    split_scores(truth, score)
    precision, recall, _ = metrics.precision_recall_curve(np.asarray(truth), np.asarray(score, np.float64))
    precision[-1] = precision[-2]  # scikit-learn closes the curve at 1, which no threshold reaches
    return recall[::-1], precision[::-1]


def slide_metrics(truth: ArrayLike, score: ArrayLike, *, threshold: float = 0.5) -> dict[str, float]:
    """Figures at a threshold and over all thresholds.

    Parameters
    ----------
    truth
        0 or 1, shape (N,).
    score
        Probability of 1, shape (N,).
    threshold
        Scores from here on are called positive; fix it before looking at test slides.

    Returns
    -------
    dict
        ``sensitivity``, ``specificity``, ``balanced_accuracy``, ``pr_auc`` (average precision), ``brier``.

    Raises
    ------
    EvaluationError
        As :func:`auc_with_interval`; or a score that is no probability.
    """
    positive, negative = split_scores(truth, score)
    lowest, highest = min(positive.min(), negative.min()), max(positive.max(), negative.max())
    if lowest < 0 or highest > 1:
        raise EvaluationError(f"scores reach from {lowest:.4g} to {highest:.4g}; probabilities lie in 0-1")
    sensitivity = float((positive >= threshold).mean())
    specificity = float((negative < threshold).mean())
    labels, scores = np.asarray(truth), np.asarray(score, np.float64)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "pr_auc": float(metrics.average_precision_score(labels, scores)),
        "brier": float(np.mean((scores - labels) ** 2)),
    }


def split_scores(truth: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """Scores of positives and of negatives, checked.

    Raises
    ------
    EvaluationError
        As :func:`auc_with_interval`.
    """
    labels, scores = np.asarray(truth), np.asarray(score, np.float64)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise EvaluationError(f"truth of shape {labels.shape} and scores of shape {scores.shape} do not match")
    if not np.isfinite(scores).all():
        raise EvaluationError(f"{int((~np.isfinite(scores)).sum())} scores are not finite; predict again")
    if not np.isin(labels, (0, 1)).all():
        raise EvaluationError("truth must be 0 or 1 for every case")
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not len(positive) or not len(negative):
        raise EvaluationError(
            f"{len(positive)} positive and {len(negative)} negative cases: figures that compare the two need both"
        )
    return positive, negative


def _delong(positive: Floats, negative: Floats) -> tuple[float, float]:
    """AUC and its variance."""
    m, n = len(positive), len(negative)
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    over_negatives = (ranks[:m] - stats.rankdata(positive)) / n  # share of negatives below each positive
    over_positives = 1 - (ranks[m:] - stats.rankdata(negative)) / m  # share of positives above each negative
    value = float(over_negatives.mean())
    if m < 2 or n < 2:
        return value, 0.0
    return value, float(over_negatives.var(ddof=1) / m + over_positives.var(ddof=1) / n)
