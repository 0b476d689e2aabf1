"""Metrics of a task with any number of classes. Shapes: N slides, C classes.

The truth and the answers of a single-label task are class numbers, shape (N,); those of a multi-label task say which
classes hold, bool, shape (N, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.classification import Interval
from wsi_ips.evaluation.intervals import class_rates, share_interval

Labels: TypeAlias = NDArray[np.integer] | NDArray[np.bool_]


@dataclass(frozen=True)
class TaskFigures:
    """Accuracy and AUC of a task, without intervals."""

    # single-label: share of slides whose most probable class is the true one. Multi-label: share of (slide, class)
    # pairs that are right at probability 0.5.
    accuracy: float
    # mean one-vs-rest AUC of the classes that have slides with and without them; None without such a class
    auc: float | None
    slides: int  # number of slides


@dataclass(frozen=True)
class ClassFigures:
    """Metrics of one class against the rest."""

    name: str  # name of the class
    # positives, negatives: number of slides with and without the class
    positives: int
    negatives: int
    auc: Interval | None  # AUC; None where all slides or none have the class
    # found, others_right: sensitivity and specificity of the answers; None without slides with, or without, the class
    found: Interval | None
    others_right: Interval | None


@dataclass(frozen=True)
class TaskEvaluation:
    """Metrics of one task."""

    # name, kind: task; ``single``: exactly one class holds; ``multi``: any number
    name: str
    kind: str
    slides: int  # number of slides with a known answer
    accuracy: Interval  # share of slides that are answered entirely right
    share_right: float  # the same for a ``single`` task; share of right (slide, class) pairs for a ``multi`` task
    mean_auc: float | None  # mean one-vs-rest AUC of the classes; None where no class has one
    kappa: float | None  # Cohen's kappa of a ``single`` task; None for others and where it is undefined
    classes: tuple[ClassFigures, ...]  # metrics of each class
    # number of slides by true class (rows) and answer (columns); empty for ``multi``
    confusion: tuple[tuple[int, ...], ...]


def task_figures(truth: Labels, probability: NDArray[np.floating]) -> TaskFigures:
    """Compute accuracy and mean AUC of a task from the truth and class probabilities, shape (N, C).

    Raises
    ------
    EvaluationError
        No slides, shapes that do not match, a class number out of range, or probabilities that are not finite.
    """
    if probability.ndim != 2 or not len(probability) or truth.shape != probability.shape[: truth.ndim]:
        raise EvaluationError(
            f"truth of shape {truth.shape} and probabilities of shape {probability.shape} do not match"
        )
    if not np.isfinite(probability).all():
        raise EvaluationError(f"{int((~np.isfinite(probability)).sum())} probabilities are not finite; predict again")
    classes = probability.shape[1]
    if truth.ndim == 1 and not ((truth >= 0) & (truth < classes)).all():
        raise EvaluationError(f"class numbers range from {truth.min()} to {truth.max()}; there are {classes} classes")
    holds = _one_hot(truth, classes)  # (N, C)
    right = _answers(truth, probability) == truth
    varied = np.flatnonzero(holds.any(0) & ~holds.all(0))
    aucs = [float(metrics.roc_auc_score(holds[:, c], probability[:, c])) for c in varied]
    return TaskFigures(float(right.mean()), float(np.mean(aucs)) if aucs else None, len(truth))


def evaluate_task(
    name: str,
    classes: Sequence[str],
    truth: Labels,
    probability: NDArray[np.floating],
    patients: Sequence[str] | None = None,
    answers: Labels | None = None,
) -> TaskEvaluation:
    """Compute all metrics of a task, with intervals.

    Parameters
    ----------
    name, classes
        Name of the task and of its classes.
    truth
        True classes.
    probability
        Class probabilities, shape (N, C).
    patients
        Patient of each slide, as for :func:`wsi_ips.evaluation.slide_intervals`.
    answers
        Predicted classes, in the form of ``truth``; None: the most probable class, or all at 0.5 or above.

    Raises
    ------
    EvaluationError
        As :func:`task_figures`.
    """
    plain = task_figures(truth, probability)
    single = truth.ndim == 1
    called = _answers(truth, probability) if answers is None else answers
    holds, given = _one_hot(truth, len(classes)), _one_hot(called, len(classes))  # (N, C)
    confusion = metrics.confusion_matrix(truth, called, labels=np.arange(len(classes))) if single else np.zeros((0, 0))
    varied = single and len({*truth.tolist(), *called.tolist()}) > 1
    entirely = (holds == given).all(1)
    return TaskEvaluation(
        name,
        "single" if single else "multi",
        len(truth),
        share_interval(entirely, patients),
        float(entirely.mean() if single else (holds == given).mean()),
        plain.auc,
        float(metrics.cohen_kappa_score(truth, called)) if varied else None,
        tuple(
            ClassFigures(c, *class_rates(holds[:, i], given[:, i], probability[:, i], patients))
            for i, c in enumerate(classes)
        ),
        tuple(tuple(int(cell) for cell in row) for row in confusion.tolist()),
    )


def _answers(truth: Labels, probability: NDArray[np.floating]) -> Labels:
    """Return the predicted classes in the form of ``truth``."""
    return probability.argmax(1) if truth.ndim == 1 else probability >= 0.5


def _one_hot(labels: Labels, classes: int) -> NDArray[np.bool_]:
    return labels[:, None] == np.arange(classes) if labels.ndim == 1 else np.asarray(labels, bool)
