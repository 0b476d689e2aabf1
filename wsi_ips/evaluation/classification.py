"""Metrics of a two-class score with confidence intervals. Shapes: N slides, R resamples (rows of a block of weights).

Slides of one patient are not independent. Where patients are known, the bootstrap draws patients, not slides.

- ``auc``: DeLong, see :func:`auc_with_interval`; it takes slides as independent.
- ``auc_bootstrap``, ``pr_auc``, ``brier``: percentile bootstrap over patients, stratified by the classes of their
  slides. With perfect separation every resample has an area of 1. The interval is then the exact binomial one (Clopper
  and Pearson, 1934) of as many successes as the smaller class has patients (``pr_auc``: as there are patients with
  positive slides).
- ``sensitivity``, ``specificity``: see :func:`share_interval`.
- ``balanced_accuracy``: MOVER (Zou and Donner, 2008) on these two where slides are independent, so never of zero width;
  otherwise the bootstrap, widened to MOVER's where that is wider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn import metrics

from wsi_ips.errors import EvaluationError

CELLS_AT_A_TIME = 2_000_000  # resamples times slides held in memory at once
CONFIDENCE = 0.95
RESAMPLES, SEED = 2000, 0  # number of bootstrap resamples, and seed of their draw
BY_PATIENT = "bootstrap by patient"
Floats = NDArray[np.float64]
Counts = tuple[int, int]
Figures = Mapping[str, Callable[[Floats], Floats]]


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval."""

    value: float
    low: float
    high: float
    positives: int  # number of cases of each class
    negatives: int
    method: str  # how the interval was computed


def auc_with_interval(truth: ArrayLike, score: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Compute the area under the ROC curve with an interval.

    The variance is DeLong's (DeLong et al., 1988) by midranks (Sun and Xu, 2014). The interval is computed on the logit
    scale, so it stays within 0-1. With perfect separation the variance is 0 and means nothing. The interval is then the
    exact binomial one (Clopper and Pearson, 1934) of ``min(P, N)`` disjoint pairs that are all in the right order:
    conservative, and never of zero width. Where all scores are equal or a class has one case, the interval is 0-1 and
    the method ``undetermined``.

    ``truth`` is 0 or 1, shape (N,); a higher ``score``, shape (N,), means more likely 1.

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
    """Return false and true positive rates over all thresholds, from 0 to 1."""
    split_scores(truth, score)
    false, true, _ = metrics.roc_curve(np.asarray(truth), np.asarray(score, np.float64))
    return false, true


def precision_recall(truth: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """Return recall (from 0 to 1) and precision; the precision at recall 0 is that of the highest score."""
    split_scores(truth, score)
    precision, recall, _ = metrics.precision_recall_curve(np.asarray(truth), np.asarray(score, np.float64))
    precision[-1] = precision[-2]  # scikit-learn ends the curve at precision 1, which no threshold reaches
    return recall[::-1], precision[::-1]


def slide_metrics(truth: ArrayLike, score: ArrayLike, *, threshold: float = 0.5) -> dict[str, float]:
    """Return ``sensitivity``, ``specificity``, ``balanced_accuracy``, ``pr_auc`` (average precision) and ``brier``.

    Scores at or above the threshold are called positive; fix it before looking at test slides.
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
    """Check scores and return those of positives and of negatives."""
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


def both_classes(score: Floats) -> Floats:
    """Return probabilities of 0 and of 1, shape (N, 2)."""
    return np.stack([1 - score, score], axis=1)


def one_hot(labels: NDArray[np.generic], classes: int) -> NDArray[np.bool_]:
    """Return which classes apply, shape (N, C), from class numbers, shape (N,), or from itself."""
    return labels[:, None] == np.arange(classes) if labels.ndim == 1 else np.asarray(labels, bool)


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


def slide_intervals(
    truth: ArrayLike,
    score: ArrayLike,
    *,
    threshold: float = 0.5,
    patients: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """Compute the AUC and the metrics of :func:`slide_metrics`, each with a suitable interval (see the module).

    A patient with an empty name, or ``patients`` None, means that the slide counts as a separate patient.
    """
    values = slide_metrics(truth, score, threshold=threshold)
    labels, scores = np.asarray(truth, int), np.asarray(score, np.float64)
    groups = _numbered(patients, len(labels))
    counts = (int((labels == 1).sum()), int((labels == 0).sum()))
    right = (scores >= threshold) == (labels == 1)
    sensitivity, specificity = (_share(right[labels == c], groups[labels == c], counts, resamples) for c in (1, 0))
    area = auc_with_interval(truth, score)
    value = area.value
    figures: Figures = {
        "auc": lambda w: _auc(labels, scores, w),
        "pr_auc": lambda w: _average_precision(labels, scores, w),
        "brier": lambda w: w @ (scores - labels) ** 2 / w.sum(1),
        "balanced_accuracy": lambda w: (_rate(right, labels == 1, w) + _rate(right, labels == 0, w)) / 2,
    }
    drawn = _bootstrap(labels, groups, figures, resamples)
    patients_of = [len(set(groups[labels == c].tolist())) for c in (1, 0)]
    is_clustered = len(set(groups.tolist())) < len(groups)
    method = BY_PATIENT if is_clustered else "bootstrap"

    def by_bootstrap(name: str, figure: float) -> Interval:
        return _percentiles(figure, drawn[name], counts, method)

    balanced = _mover(sensitivity, specificity)
    if is_clustered:
        wide = by_bootstrap("balanced_accuracy", balanced.value)
        balanced = replace(wide, low=min(balanced.low, wide.low), high=max(balanced.high, wide.high))
    return {
        "auc": area,
        "auc_bootstrap": _exact(value, min(patients_of), counts) if value in (0, 1) else by_bootstrap("auc", value),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": balanced,
        "pr_auc": _exact(value, patients_of[0], counts) if value == 1 else by_bootstrap("pr_auc", values["pr_auc"]),
        "brier": by_bootstrap("brier", values["brier"]),
    }


def share_interval(hits: ArrayLike, patients: Sequence[str] | None = None, *, resamples: int = RESAMPLES) -> Interval:
    """Compute the share of slides for which something holds.

    The interval is exact binomial (Clopper and Pearson, 1934) where every slide has its own patient. Otherwise it is
    the percentile bootstrap over patients; where all slides or none are hits, the exact one of as many cases as there
    are patients. ``positives`` and ``negatives`` of the result are hits and the others.
    """
    held = np.asarray(hits, bool)
    if held.ndim != 1 or not len(held):
        raise EvaluationError("no slide: a share needs at least one")
    counts = (int(held.sum()), int((~held).sum()))
    return _share(held, _numbered(patients, len(held)), counts, resamples)


def class_rates(
    holds: NDArray[np.bool_], given: NDArray[np.bool_], score: NDArray[np.floating], patients: Sequence[str] | None
) -> tuple[int, int, Interval | None, Interval | None, Interval | None]:
    """Return numbers of positives and negatives, AUC, sensitivity and specificity; None where a class is missing."""

    def rate(chosen: NDArray[np.bool_], right: NDArray[np.bool_]) -> Interval | None:
        return share_interval(right[chosen], some_of(patients, chosen)) if chosen.any() else None

    both = bool(holds.any() and not holds.all())
    return (
        int(holds.sum()),
        int((~holds).sum()),
        auc_with_interval(holds.astype(int), score) if both else None,
        rate(holds, given),
        rate(~holds, ~given),
    )


def some_of(patients: Sequence[str] | None, chosen: NDArray[np.bool_]) -> list[str] | None:
    """Return the patients of some of the slides; ``chosen`` is bool, shape (N,)."""
    return None if patients is None else [patients[i] for i in np.flatnonzero(chosen).tolist()]


def _numbered(patients: Sequence[str] | None, slides: int) -> NDArray[np.int64]:
    """Return a number per slide, the same for slides of one patient, shape (N,)."""
    if patients is None:
        return np.arange(slides)
    if len(patients) != slides:
        raise EvaluationError(f"{len(patients)} patients for {slides} slides; one of each is needed")
    names = [patient or (number,) for number, patient in enumerate(patients)]
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def _share(hits: NDArray[np.bool_], groups: NDArray[np.int64], counts: Counts, resamples: int) -> Interval:
    patients, successes = len(set(groups.tolist())), int(hits.sum())
    value = successes / len(hits)
    if patients == len(hits) or successes in (0, len(hits)):
        return _exact(value, patients, counts)
    drawn = _bootstrap(np.ones(len(hits), int), groups, {"share": lambda w: w @ hits / w.sum(1)}, resamples)
    return _percentiles(value, drawn["share"], counts, BY_PATIENT)


def _percentiles(value: float, drawn: Floats, counts: Counts, method: str) -> Interval:
    """Return the percentile interval of a figure from its resamples, shape (R,)."""
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).clip(0, 1).tolist()
    return Interval(value, low, high, *counts, method)


def _exact(value: float, cases: int, counts: Counts) -> Interval:
    """Return the exact binomial interval (Clopper and Pearson, 1934) of a share of independent cases."""
    ends = stats.binomtest(round(value * cases), cases).proportion_ci(CONFIDENCE, method="exact")
    return Interval(value, float(ends.low), float(ends.high), *counts, "Clopper-Pearson")


def _mover(first: Interval, second: Interval) -> Interval:
    """Return the mean of two figures; MOVER takes them as independent."""
    value = (first.value + second.value) / 2
    low = float(value - np.hypot(first.value - first.low, second.value - second.low) / 2)
    high = float(value + np.hypot(first.high - first.value, second.high - second.value) / 2)
    return Interval(value, low, high, first.positives, first.negatives, "MOVER")


def _bootstrap(
    labels: NDArray[np.integer], groups: NDArray[np.int64], figures: Figures, resamples: int
) -> dict[str, Floats]:
    """Return each figure of every resample, shape (R,); a figure takes a block of weights, shape (R, N)."""
    blocks = [[figure(weights) for figure in figures.values()] for weights in _resamples(labels, groups, resamples)]
    return {name: np.concatenate(values) for name, values in zip(figures, zip(*blocks, strict=True), strict=True)}


def _resamples(labels: NDArray[np.integer], groups: NDArray[np.int64], resamples: int) -> Iterator[Floats]:
    """Yield blocks of weights: how often each slide is drawn, shape (R, N).

    Patients are drawn within strata: those with positive slides only, with negative slides only, and with both. So
    every resample has both classes, and about as many slides of each.
    """
    rng = np.random.default_rng(SEED)
    patients = int(groups.max()) + 1
    kinds = np.zeros((patients, 2), bool)  # whether a patient has slides of class 0, of class 1
    kinds[groups, labels] = True
    strata = [np.flatnonzero((kinds == kind).all(1)) for kind in ((True, False), (False, True), (True, True))]
    block = max(1, CELLS_AT_A_TIME // len(labels))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = np.zeros((count, patients))
        for members in strata:
            if len(members):
                drawn[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), count)
        yield drawn[:, groups]


def _auc(labels: NDArray[np.integer], scores: Floats, weights: Floats) -> Floats:
    """Return the weighted AUC per row of weights: pairs in the right order, ties count half."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    first, last = np.searchsorted(ordered, ordered, side="left"), np.searchsorted(ordered, ordered, side="right")
    positive, negative = weights[:, order] * labels[order], weights[:, order] * (1 - labels[order])
    below = np.concatenate([np.zeros((len(weights), 1)), negative.cumsum(axis=1)], axis=1)  # (R, N + 1)
    pairs = (positive * (below[:, first] + below[:, last]) / 2).sum(axis=1)
    return np.asarray(pairs / (positive.sum(axis=1) * negative.sum(axis=1)))


def _rate(right: NDArray[np.bool_], here: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return the weighted share of slides of one class that are right, per row of weights."""
    return np.asarray(weights[:, here] @ right[here] / weights[:, here].sum(axis=1))


def _average_precision(labels: NDArray[np.integer], scores: Floats, weights: Floats) -> Floats:
    """Return the weighted average precision per row: the mean over positives of the precision at their score."""
    order = np.argsort(-scores, kind="stable")
    last = np.searchsorted(-scores[order], -scores[order], side="right") - 1  # last case of each tied score
    drawn, hits = weights[:, order], weights[:, order] * labels[order]
    with np.errstate(invalid="ignore"):  # no case drawn so far: its precision has weight 0
        precision = hits.cumsum(axis=1)[:, last] / drawn.cumsum(axis=1)[:, last]
    return np.asarray(np.nansum(hits * precision, axis=1) / hits.sum(axis=1))
