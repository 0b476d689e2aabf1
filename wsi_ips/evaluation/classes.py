"""Figures of a task with any number of classes, each with its interval: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from wsi_ips.evaluation.intervals import share_interval
from wsi_ips.evaluation.slide import Interval, auc_with_interval
from wsi_ips.evaluation.tasks import task_figures


@dataclass(frozen=True)
class ClassFigures:
    """One class against the rest.

    Attributes
    ----------
    name
        Of the class.
    positives, negatives
        Slides of which it holds, and others.
    auc
        With its interval; None where it holds for all slides or for none.
    found, others_right
        Share of its slides that were given it, and of the others that were not; None without such slides.
    """

    name: str
    positives: int
    negatives: int
    auc: Interval | None
    found: Interval | None
    others_right: Interval | None


@dataclass(frozen=True)
class TaskEvaluation:
    """Figures of one task.

    Attributes
    ----------
    name, kind
        Of the task; ``single``: exactly one class holds; ``multi``: any number.
    slides
        Those whose answer is known.
    accuracy
        Share of slides answered wholly right, with its interval.
    share_right
        The same without an interval; of a ``multi`` task the share of (slide, class) pairs that are right.
    mean_auc
        Mean over classes of the area under the ROC curve; None where there is none.
    kappa
        Cohen's kappa of a ``single`` task; None where it is undefined, and for others.
    classes
        Figures of each class.
    confusion
        Slides by true class (rows) and answer (columns); empty for ``multi``.
    """

    name: str
    kind: str
    slides: int
    accuracy: Interval
    share_right: float
    mean_auc: float | None
    kappa: float | None
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]


def evaluate_task(
    name: str,
    classes: Sequence[str],
    truth: NDArray[np.integer] | NDArray[np.bool_],
    probability: NDArray[np.floating],
    patients: Sequence[str] | None = None,
    answers: NDArray[np.integer] | NDArray[np.bool_] | None = None,
) -> TaskEvaluation:
    """Figures of a task.

    Parameters
    ----------
    name, classes
        Of the task.
    truth
        Single-label: class numbers, shape (N,). Multi-label: which classes hold, bool, shape (N, C).
    probability
        Shape (N, C).
    patients
        Patient of each slide, as for :func:`wsi_ips.evaluation.slide_intervals`.
    answers
        What was called, in the form of ``truth``; None: the most probable class, or all from 0.5 on.

    Raises
    ------
    EvaluationError
        As :func:`wsi_ips.evaluation.task_figures`.
    """
    plain = task_figures(truth, probability)
    single = truth.ndim == 1
    numbers = np.arange(len(classes))
    holds = truth[:, None] == numbers if single else np.asarray(truth, bool)  # (N, C)
    called = answers if answers is not None else probability.argmax(1) if single else probability >= 0.5
    given = called[:, None] == numbers if single else np.asarray(called, bool)  # (N, C)
    confusion = metrics.confusion_matrix(truth, called, labels=numbers) if single else np.zeros((0, 0))
    varied = single and len({*truth.tolist(), *called.tolist()}) > 1
    wholly = (holds == given).all(1)
    return TaskEvaluation(
        name,
        "single" if single else "multi",
        len(truth),
        share_interval(wholly, patients),
        float(wholly.mean() if single else (holds == given).mean()),
        plain.auc,
        float(metrics.cohen_kappa_score(truth, called)) if varied else None,
        tuple(_of_class(c, holds[:, i], given[:, i], probability[:, i], patients) for i, c in enumerate(classes)),
        tuple(tuple(int(cell) for cell in row) for row in confusion.tolist()),
    )


def _of_class(
    name: str,
    holds: NDArray[np.bool_],
    given: NDArray[np.bool_],
    score: NDArray[np.floating],
    patients: Sequence[str] | None,
) -> ClassFigures:
    def rate(chosen: NDArray[np.bool_], right: NDArray[np.bool_]) -> Interval | None:
        of = None if patients is None else [patients[i] for i in np.flatnonzero(chosen).tolist()]
        return share_interval(right[chosen], of) if chosen.any() else None

    both = bool(holds.any() and not holds.all())
    return ClassFigures(
        name,
        int(holds.sum()),
        int((~holds).sum()),
        auc_with_interval(holds.astype(int), score) if both else None,
        rate(holds, given),
        rate(~holds, ~given),
    )
