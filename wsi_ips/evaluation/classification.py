"""Metrics of a two-class score: AUC with its interval, curves, and figures at a threshold. Shapes: N slides."""

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
    """A figure with its confidence interval."""

    # value, low, high: the figure and the ends of its interval
    value: float
    low: float
    high: float
    # positives, negatives: number of cases of each class
    positives: int
    negatives: int
    method: str  # how the interval was computed


def auc_with_interval(truth: ArrayLike, score: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Compute the area under the ROC curve with an interval.

    The variance is DeLong's (DeLong et al., 1988) by midranks (Sun and Xu, 2014). The interval is computed on the logit
    scale, so it stays within 0-1. With perfect separation the variance is 0 and means nothing. The interval is then the
    exact binomial one (Clopper and Pearson, 1934) of ``min(P, N)`` disjoint pairs that are all in the right order:
    conservative, and never of zero width. Where all scores are equal or a class has one case, the interval is 0-1 and
    the method ``undetermined``.

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
        Only one class, different lengths, or a score that is not finite.
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
    """Return false and true positive rates over all thresholds, from 0 to 1; raises as :func:`auc_with_interval`."""
    split_scores(truth, score)
    false, true, _ = metrics.roc_curve(np.asarray(truth), np.asarray(score, np.float64))
    return false, true


def precision_recall(truth: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """Return recall (from 0 to 1) and precision over all thresholds; raises as :func:`auc_with_interval`.

    The precision at recall 0 is that of the highest score.
    """
    split_scores(truth, score)
    precision, recall, _ = metrics.precision_recall_curve(np.asarray(truth), np.asarray(score, np.float64))
    precision[-1] = precision[-2]  # scikit-learn ends the curve at precision 1, which no threshold reaches
    return recall[::-1], precision[::-1]


def slide_metrics(truth: ArrayLike, score: ArrayLike, *, threshold: float = 0.5) -> dict[str, float]:
    """Compute metrics at a threshold and over all thresholds.

    Parameters
    ----------
    truth
        0 or 1, shape (N,).
    score
        Probability of 1, shape (N,).
    threshold
        Scores at or above it are called positive. Fix it before looking at test slides.

    Returns
    -------
    dict
        ``sensitivity``, ``specificity``, ``balanced_accuracy``, ``pr_auc`` (average precision), ``brier``.

    Raises
    ------
    EvaluationError
        As :func:`auc_with_interval`; or a score outside 0-1.
    """
    positive, negative = split_scores(truth, score)
    lowest, highest = min(positive.min(), negative.min()), max(positive.max(), negative.max())
    if lowest < 0 or highest > 1:
        raise EvaluationError(f"scores range from {lowest:.4g} to {highest:.4g}; probabilities lie in 0-1")
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
    """Check scores and return those of positives and of negatives; raises as :func:`auc_with_interval`."""
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
            f"{len(positive)} positive and {len(negative)} negative cases: these metrics need both classes"
        )
    return positive, negative


def _delong(positive: Floats, negative: Floats) -> tuple[float, float]:
    """Return the AUC and its variance."""
    m, n = len(positive), len(negative)
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    over_negatives = (ranks[:m] - stats.rankdata(positive)) / n  # share of negatives below each positive, (m,)
    over_positives = 1 - (ranks[m:] - stats.rankdata(negative)) / m  # share of positives above each negative, (n,)
    value = float(over_negatives.mean())
    if m < 2 or n < 2:
        return value, 0.0
    return value, float(over_negatives.var(ddof=1) / m + over_positives.var(ddof=1) / n)
