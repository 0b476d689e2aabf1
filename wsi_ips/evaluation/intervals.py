"""Every figure of slide-level prediction with its confidence interval: numbers in, numbers out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from wsi_ips.evaluation.slide import Floats, Interval, auc_with_interval, slide_metrics, split_scores

RESAMPLES = 2000


def slide_intervals(
    truth: ArrayLike,
    score: ArrayLike,
    *,
    threshold: float = 0.5,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """AUC and the figures of :func:`slide_metrics`, each with an interval that fits it.

    - ``auc``: see :func:`auc_with_interval`.
    - ``sensitivity``, ``specificity``: exact binomial (Clopper and Pearson, 1934).
    - ``balanced_accuracy``: MOVER (Zou and Donner, 2008) on those two, so never of zero width.
    - ``pr_auc``, ``brier``: percentile bootstrap over cases, stratified by class. Where the classes are
      separated wholly every resample has a ``pr_auc`` of 1; then it is the exact binomial interval of P
      precisions that all came out 1.

    Parameters
    ----------
    truth
        0 or 1, shape (N,).
    score
        Probability of 1, shape (N,).
    threshold
        Scores from here on are called positive; fix it before looking at test slides.
    confidence
        Coverage of the intervals.
    resamples, seed
        Of the bootstrap.

    Raises
    ------
    EvaluationError
        As :func:`auc_with_interval`; or a score that is no probability.
    """
    values = slide_metrics(truth, score, threshold=threshold)
    positive, negative = split_scores(truth, score)
    counts = (len(positive), len(negative))
    auc = auc_with_interval(truth, score, confidence=confidence)
    sensitivity = _binomial(int((positive >= threshold).sum()), len(positive), counts, confidence)
    specificity = _binomial(int((negative < threshold).sum()), len(negative), counts, confidence)
    labels, scores = np.repeat([1, 0], counts), np.concatenate([positive, negative])
    weights = _resamples(labels, resamples, seed)
    if auc.value == 1:
        pr_auc = _binomial(len(positive), len(positive), counts, confidence)
    else:
        pr_auc = _percentiles(values["pr_auc"], _average_precision(labels, scores, weights), counts, confidence)
    brier = weights @ (scores - labels) ** 2 / len(scores)
    return {
        "auc": auc,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": _mean(sensitivity, specificity),
        "pr_auc": pr_auc,
        "brier": _percentiles(values["brier"], brier, counts, confidence),
    }


def _binomial(successes: int, trials: int, counts: tuple[int, int], confidence: float) -> Interval:
    ends = stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return Interval(successes / trials, float(ends.low), float(ends.high), *counts, "Clopper-Pearson")


def _mean(first: Interval, second: Interval) -> Interval:
    """Mean of two independent figures; the interval by MOVER."""
    value = (first.value + second.value) / 2
    below = np.hypot(first.value - first.low, second.value - second.low) / 2
    above = np.hypot(first.high - first.value, second.high - second.value) / 2
    return Interval(value, float(value - below), float(value + above), first.positives, first.negatives, "MOVER")


def _resamples(labels: NDArray[np.integer], resamples: int, seed: int) -> Floats:
    """How often each case is drawn, shape (resamples, N); within its class, so every resample holds both."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(labels)))
    for label in (0, 1):
        cases = int((labels == label).sum())
        weights[:, labels == label] = rng.multinomial(cases, np.full(cases, 1 / cases), resamples)
    return weights


def _average_precision(labels: NDArray[np.integer], scores: Floats, weights: Floats) -> Floats:
    """Average precision of every row of weights: the mean over positives of the precision at their score."""
    order = np.argsort(-scores, kind="stable")
    last = np.searchsorted(-scores[order], -scores[order], side="right") - 1  # last case of an equal score
    drawn, hits = weights[:, order], weights[:, order] * labels[order]
    with np.errstate(invalid="ignore"):  # no case drawn so far: its precision has weight 0
        precision = hits.cumsum(axis=1)[:, last] / drawn.cumsum(axis=1)[:, last]
    return np.asarray(np.nansum(hits * precision, axis=1) / hits.sum(axis=1))


def _percentiles(value: float, drawn: Floats, counts: tuple[int, int], confidence: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]).clip(0, 1).tolist()
    return Interval(value, low, high, *counts, "bootstrap")
