"""Confidence intervals of slide-level metrics.

Slides of one patient are not independent. Where patients are known, the bootstrap draws patients, not slides.

- ``auc``: see :func:`auc_with_interval`; it takes slides as independent.
- ``auc_bootstrap``, ``pr_auc``, ``brier``: percentile bootstrap over patients, stratified by the classes of their
  slides. With perfect separation every resample has an area of 1. The interval is then the exact binomial one (Clopper
  and Pearson, 1934) of as many successes as the smaller class has patients (``pr_auc``: as there are patients with
  positive slides).
- ``sensitivity``, ``specificity``: see :func:`share_interval`.
- ``balanced_accuracy``: MOVER (Zou and Donner, 2008) on these two where slides are independent, so never of zero width;
  otherwise the bootstrap, widened to MOVER's where that is wider.

Shapes: N slides, R resamples (rows of a block of weights).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.classification import Floats, Interval, auc_with_interval, slide_metrics

CELLS_AT_A_TIME = 2_000_000
"""Resamples times slides held in memory at once."""
BY_PATIENT = "bootstrap by patient"
Counts = tuple[int, int]


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are computed."""

    confidence: float = 0.95  # coverage of the intervals
    # resamples, seed: number of bootstrap resamples, and seed of their draw
    resamples: int = 2000
    seed: int = 0

    def percentiles(self, value: float, drawn: Floats, counts: Counts, method: str) -> Interval:
        """Return the percentile interval of a figure from its resamples, shape (R,)."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(drawn, [tail, (1 + self.confidence) / 2]).clip(0, 1).tolist()
        return Interval(value, low, high, *counts, method)

    def exact(self, value: float, cases: int, counts: Counts) -> Interval:
        """Return the exact binomial interval (Clopper and Pearson, 1934) of a share of independent cases."""
        ends = stats.binomtest(round(value * cases), cases).proportion_ci(self.confidence, method="exact")
        return Interval(value, float(ends.low), float(ends.high), *counts, "Clopper-Pearson")


DEFAULT = Bootstrap()


def slide_intervals(
    truth: ArrayLike,
    score: ArrayLike,
    *,
    threshold: float = 0.5,
    patients: Sequence[str] | None = None,
    plan: Bootstrap = DEFAULT,
) -> dict[str, Interval]:
    """Compute the AUC and the metrics of :func:`slide_metrics`, each with a suitable interval (see the module).

    Parameters
    ----------
    truth, score, threshold
        As for :func:`slide_metrics`.
    patients, plan
        Patient of each slide (an empty name, or None for all, is a patient of its own); coverage, resamples and seed.

    Raises
    ------
    EvaluationError
        As :func:`slide_metrics`; not one patient per slide.
    """
    values = slide_metrics(truth, score, threshold=threshold)
    labels, scores = np.asarray(truth, int), np.asarray(score, np.float64)
    groups = _numbered(patients, len(labels))
    counts = (int((labels == 1).sum()), int((labels == 0).sum()))
    right = (scores >= threshold) == (labels == 1)
    sensitivity, specificity = (_share(right[labels == c], groups[labels == c], counts, plan) for c in (1, 0))
    area = auc_with_interval(truth, score, confidence=plan.confidence)
    drawn = _drawn_metrics(labels, scores, right, groups, plan)
    patients_of = [len(set(groups[labels == c].tolist())) for c in (1, 0)]
    is_clustered = len(set(groups.tolist())) < len(groups)
    method = BY_PATIENT if is_clustered else "bootstrap"

    def by_bootstrap(name: str, value: float) -> Interval:
        return plan.percentiles(value, drawn[name], counts, method)

    def exact(cases: int) -> Interval:
        return plan.exact(area.value, cases, counts)

    mover = _mover(sensitivity, specificity)
    return {
        "auc": area,
        "auc_bootstrap": exact(min(patients_of)) if area.value in (0, 1) else by_bootstrap("auc", area.value),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": _wider(mover, by_bootstrap("balanced_accuracy", mover.value)) if is_clustered else mover,
        "pr_auc": exact(patients_of[0]) if area.value == 1 else by_bootstrap("pr_auc", values["pr_auc"]),
        "brier": by_bootstrap("brier", values["brier"]),
    }


def _drawn_metrics(
    labels: NDArray[np.int64], scores: Floats, right: NDArray[np.bool_], groups: NDArray[np.int64], plan: Bootstrap
) -> dict[str, Floats]:
    """Return metrics of every resample, shape (R,) each."""
    metrics: dict[str, Callable[[Floats], Floats]] = {
        "auc": lambda w: _auc(labels, scores, w),
        "pr_auc": lambda w: _average_precision(labels, scores, w),
        "brier": lambda w: w @ (scores - labels) ** 2 / w.sum(1),
        "balanced_accuracy": lambda w: (_rate(right, labels == 1, w) + _rate(right, labels == 0, w)) / 2,
    }
    return dict(zip(metrics, _bootstrap(labels, groups, [*metrics.values()], plan), strict=True))


def share_interval(hits: ArrayLike, patients: Sequence[str] | None = None, *, plan: Bootstrap = DEFAULT) -> Interval:
    """Compute the share of slides for which something holds.

    The interval is exact binomial (Clopper and Pearson, 1934) where every slide has its own patient. Otherwise it is
    the percentile bootstrap over patients; where all slides or none are hits, the exact one of as many cases as there
    are patients. ``positives`` and ``negatives`` of the result are hits and the others.

    Parameters
    ----------
    hits
        Bool, shape (N,).
    patients, plan
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
    return _share(held, _numbered(patients, len(held)), counts, plan)


def class_rates(
    holds: NDArray[np.bool_], given: NDArray[np.bool_], score: NDArray[np.floating], patients: Sequence[str] | None
) -> tuple[int, int, Interval | None, Interval | None, Interval | None]:
    """Return numbers of positives and negatives, AUC, sensitivity and specificity; None where a class is missing.

    Parameters
    ----------
    holds, given
        Truth and call, bool, shape (N,).
    score, patients
        Per slide, shape (N,), as for :func:`slide_intervals`.
    """

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


def _share(hits: NDArray[np.bool_], groups: NDArray[np.int64], counts: Counts, plan: Bootstrap) -> Interval:
    patients, successes = len(set(groups.tolist())), int(hits.sum())
    value = successes / len(hits)
    if patients == len(hits) or successes in (0, len(hits)):
        return plan.exact(value, patients, counts)
    (drawn,) = _bootstrap(np.ones(len(hits), int), groups, [lambda w: w @ hits / w.sum(1)], plan)
    return plan.percentiles(value, drawn, counts, BY_PATIENT)


def _mover(first: Interval, second: Interval) -> Interval:
    """Return the mean of two figures; MOVER takes them as independent."""
    value = (first.value + second.value) / 2
    low = float(value - np.hypot(first.value - first.low, second.value - second.low) / 2)
    high = float(value + np.hypot(first.high - first.value, second.high - second.value) / 2)
    return Interval(value, low, high, first.positives, first.negatives, "MOVER")


def _wider(first: Interval, second: Interval) -> Interval:
    low, high = min(first.low, second.low), max(first.high, second.high)
    return Interval(second.value, low, high, second.positives, second.negatives, second.method)


def _bootstrap(
    labels: NDArray[np.integer],
    groups: NDArray[np.int64],
    figures: Sequence[Callable[[Floats], Floats]],
    plan: Bootstrap,
) -> list[Floats]:
    """Return each figure of every resample, shape (R,) each; a figure takes a block of weights, shape (R, N)."""
    blocks = [[figure(weights) for figure in figures] for weights in _resamples(labels, groups, plan)]
    return [np.concatenate(values) for values in zip(*blocks, strict=True)]


def _resamples(labels: NDArray[np.integer], groups: NDArray[np.int64], plan: Bootstrap) -> Iterator[Floats]:
    """Yield blocks of weights: how often each slide is drawn, shape (R, N).

    Patients are drawn within strata: those with positive slides only, with negative slides only, and with both. So
    every resample has both classes, and about as many slides of each.
    """
    rng = np.random.default_rng(plan.seed)
    patients = int(groups.max()) + 1
    kinds = np.zeros((patients, 2), bool)  # whether a patient has slides of class 0, of class 1
    kinds[groups, labels] = True
    strata = [np.flatnonzero((kinds == kind).all(1)) for kind in ((True, False), (False, True), (True, True))]
    block = max(1, CELLS_AT_A_TIME // len(labels))
    for start in range(0, plan.resamples, block):
        count = min(block, plan.resamples - start)
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
