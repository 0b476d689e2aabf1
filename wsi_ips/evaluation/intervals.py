"""Every figure of slide-level prediction with its confidence interval: numbers in, numbers out.

Slides of one patient are not independent. Where patients are known, they are what is drawn.

Shapes: N slides, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.slide import Floats, Interval, auc_with_interval, slide_metrics, split_scores

RESAMPLES = 2000
CELLS_AT_A_TIME = 2_000_000
"""Resamples times slides that are held in memory."""


def slide_intervals(
    truth: ArrayLike,
    score: ArrayLike,
    *,
    threshold: float = 0.5,
    patients: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """AUC and the figures of :func:`slide_metrics`, each with an interval that fits it.

    - ``auc``: see :func:`auc_with_interval`; slides count as independent.
    - ``auc_bootstrap``, ``pr_auc``, ``brier``: percentile bootstrap over patients, stratified by the classes of their
      slides. Where the classes are separated wholly every resample has an area of 1; then it is the exact binomial
      interval (Clopper and Pearson, 1934) of as many cases that all came out right as the smaller class has patients
      (``pr_auc``: as there are patients with positives).
    - ``sensitivity``, ``specificity``: see :func:`share_interval`.
    - ``balanced_accuracy``: MOVER (Zou and Donner, 2008) on those two where slides are independent, so never of zero
      width; else the bootstrap, widened to MOVER's where that is wider.

    Parameters
    ----------
    truth
        0 or 1, shape (N,).
    score
        Probability of 1, shape (N,).
    threshold
        Scores from here on are called positive; fix it before looking at test slides.
    patients
        Patient of each slide; empty is one of its own. None: every slide is.
    confidence
        Coverage of the intervals.
    resamples, seed
        Of the bootstrap.

    Raises
    ------
    EvaluationError
        As :func:`auc_with_interval`; a score that is no probability; not one patient per slide.
    """
    values = slide_metrics(truth, score, threshold=threshold)
    positive, negative = split_scores(truth, score)
    labels, scores = np.asarray(truth, int), np.asarray(score, np.float64)
    groups = _numbered(patients, len(labels))
    counts = (len(positive), len(negative))
    right = (scores >= threshold) == (labels == 1)
    sensitivity, specificity = (
        _share(right[labels == c], groups[labels == c], counts, confidence, resamples, seed) for c in (1, 0)
    )

    def drawn(*figures: Callable[[Floats], Floats]) -> list[Floats]:
        return _bootstrap(labels, groups, figures, resamples, seed)

    auc, precision, brier, balanced = drawn(
        lambda w: _auc(labels, scores, w),
        lambda w: _average_precision(labels, scores, w),
        lambda w: w @ (scores - labels) ** 2 / w.sum(1),
        lambda w: (_rate(right, labels == 1, w) + _rate(right, labels == 0, w)) / 2,
    )
    by_delong = auc_with_interval(truth, score, confidence=confidence)
    several = len(set(groups.tolist())) < len(groups)
    name = "bootstrap by patient" if several else "bootstrap"
    of_class = [len(set(groups[labels == c].tolist())) for c in (1, 0)]
    if by_delong.value in (0, 1):
        ends = _exact(min(of_class), confidence)
        low, high = ends if by_delong.value == 1 else (1 - ends[1], 1 - ends[0])
        by_bootstrap = Interval(by_delong.value, low, high, *counts, "Clopper-Pearson")
    else:
        by_bootstrap = _percentiles(by_delong.value, auc, counts, confidence, name)
    if by_delong.value == 1:
        pr_auc = Interval(1.0, *_exact(of_class[0], confidence), *counts, "Clopper-Pearson")
    else:
        pr_auc = _percentiles(values["pr_auc"], precision, counts, confidence, name)
    return {
        "auc": by_delong,
        "auc_bootstrap": by_bootstrap,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": _balanced(sensitivity, specificity, balanced, confidence, name if several else None),
        "pr_auc": pr_auc,
        "brier": _percentiles(values["brier"], brier, counts, confidence, name),
    }


def share_interval(
    hits: ArrayLike,
    patients: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Share of slides for which something holds.

    Exact binomial (Clopper and Pearson, 1934) where every slide is of another patient; else the percentile bootstrap
    over patients, and the exact one of as many slides as there are patients where all slides or none are hits.
    ``positives`` and ``negatives`` of the result are hits and the others.

    Parameters
    ----------
    hits
        Bool, shape (N,).
    patients, confidence, resamples, seed
        As for :func:`slide_intervals`.

    Raises
    ------
    EvaluationError
        No slide, or not one patient per slide.
    """
    held = np.asarray(hits, bool)
    if held.ndim != 1 or not len(held):
        raise EvaluationError("no slide: a share needs at least one")
    counts = (int(held.sum()), int((~held).sum()))
    return _share(held, _numbered(patients, len(held)), counts, confidence, resamples, seed)


def _numbered(patients: Sequence[str] | None, slides: int) -> NDArray[np.int64]:
    """A number per slide, the same for slides of one patient, shape (N,)."""
    if patients is None:
        return np.arange(slides)
    if len(patients) != slides:
        raise EvaluationError(f"{len(patients)} patients for {slides} slides; one of each is needed")
    names = [patient or (number,) for number, patient in enumerate(patients)]
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def _share(
    hits: NDArray[np.bool_],
    groups: NDArray[np.int64],
    counts: tuple[int, int],
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    cases, successes = len(set(groups.tolist())), int(hits.sum())
    value = successes / len(hits)
    if cases < len(hits) and 0 < successes < len(hits):
        labels = np.ones(len(hits), int)
        (drawn,) = _bootstrap(labels, groups, [lambda w: w @ hits / w.sum(1)], resamples, seed)
        return _percentiles(value, drawn, counts, confidence, "bootstrap by patient")
    ends = stats.binomtest(round(value * cases), cases).proportion_ci(confidence, method="exact")
    return Interval(value, float(ends.low), float(ends.high), *counts, "Clopper-Pearson")


def _exact(cases: int, confidence: float) -> tuple[float, float]:
    """Ends of the exact binomial interval of cases that all came out right."""
    ends = stats.binomtest(cases, cases).proportion_ci(confidence, method="exact")
    return float(ends.low), float(ends.high)


def _balanced(first: Interval, second: Interval, drawn: Floats, confidence: float, by_patient: str | None) -> Interval:
    """Mean of two figures; the interval by MOVER, which takes them for independent."""
    value = (first.value + second.value) / 2
    low = float(value - np.hypot(first.value - first.low, second.value - second.low) / 2)
    high = float(value + np.hypot(first.high - first.value, second.high - second.value) / 2)
    counts = (first.positives, first.negatives)
    if by_patient is None:
        return Interval(value, low, high, *counts, "MOVER")
    other = _percentiles(value, drawn, counts, confidence, by_patient)
    return Interval(value, min(low, other.low), max(high, other.high), *counts, by_patient)


def _bootstrap(
    labels: NDArray[np.integer],
    groups: NDArray[np.int64],
    figures: Sequence[Callable[[Floats], Floats]],
    resamples: int,
    seed: int,
) -> list[Floats]:
    """Each figure of every resample, shape (R,) each; a figure is given weights of shape (some resamples, N)."""
    found: list[list[Floats]] = [[] for _ in figures]
    for weights in _resamples(labels, groups, resamples, seed):
        for values, figure in zip(found, figures, strict=True):
            values.append(figure(weights))
    return [np.concatenate(values) for values in found]


def _resamples(labels: NDArray[np.integer], groups: NDArray[np.int64], resamples: int, seed: int) -> Iterator[Floats]:
    """How often each slide is drawn, shape (some resamples, N).

    Patients are drawn within their stratum: those with positive slides only, with negative ones only, with both. So
    every resample holds both classes, and about as many slides of each.
    """
    rng = np.random.default_rng(seed)
    patients = int(groups.max()) + 1
    kinds = np.zeros((patients, 2), bool)
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
    """AUC of every row of weights: pairs in the right order, equal ones by half."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    first, last = np.searchsorted(ordered, ordered, side="left"), np.searchsorted(ordered, ordered, side="right")
    positive, negative = weights[:, order] * labels[order], weights[:, order] * (1 - labels[order])
    below = np.concatenate([np.zeros((len(weights), 1)), negative.cumsum(axis=1)], axis=1)  # (R, N + 1)
    pairs = (positive * (below[:, first] + below[:, last]) / 2).sum(axis=1)
    return np.asarray(pairs / (positive.sum(axis=1) * negative.sum(axis=1)))


def _rate(right: NDArray[np.bool_], here: NDArray[np.bool_], weights: Floats) -> Floats:
    """Share of slides of one class that are right, for every row of weights."""
    return np.asarray(weights[:, here] @ right[here] / weights[:, here].sum(axis=1))


def _average_precision(labels: NDArray[np.integer], scores: Floats, weights: Floats) -> Floats:
    """Average precision of every row of weights: the mean over positives of the precision at their score."""
    order = np.argsort(-scores, kind="stable")
    last = np.searchsorted(-scores[order], -scores[order], side="right") - 1  # last case of an equal score
    drawn, hits = weights[:, order], weights[:, order] * labels[order]
    with np.errstate(invalid="ignore"):  # no case drawn so far: its precision has weight 0
        precision = hits.cumsum(axis=1)[:, last] / drawn.cumsum(axis=1)[:, last]
    return np.asarray(np.nansum(hits * precision, axis=1) / hits.sum(axis=1))


def _percentiles(value: float, drawn: Floats, counts: tuple[int, int], confidence: float, method: str) -> Interval:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]).clip(0, 1).tolist()
    return Interval(value, low, high, *counts, method)
