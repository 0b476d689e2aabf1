"""Figures of a task with any number of classes, one or several of which hold: numbers in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from wsi_ips.errors import EvaluationError


@dataclass(frozen=True)
class TaskFigures:
    """How well a task is answered.

    Attributes
    ----------
    accuracy
        Single-label: share of slides whose most probable class is theirs. Multi-label: share of (slide, class) pairs
        that are right at probability 0.5.
    auc
        Mean over classes of the area under the ROC curve, each class against the rest; classes that hold for all
        slides or for none are left out. None where all are.
    slides
        Number of slides.
    """

    accuracy: float
    auc: float | None
    slides: int


def task_figures(truth: NDArray[np.integer] | NDArray[np.bool_], probability: NDArray[np.floating]) -> TaskFigures:
    """Accuracy and mean AUC of a task.

    Parameters
    ----------
    truth
        Single-label: class numbers, shape (N,). Multi-label: which classes hold, bool, shape (N, C).
    probability
        Shape (N, C).

    Raises
    ------
    EvaluationError
        No slides, shapes that do not match, a class number that is none, or probabilities that are not finite.
    """
    if probability.ndim != 2 or not len(probability) or truth.shape != probability.shape[: truth.ndim]:
        raise EvaluationError(
            f"truth of shape {truth.shape} and probabilities of shape {probability.shape} do not match"
        )
    if not np.isfinite(probability).all():
        raise EvaluationError(f"{int((~np.isfinite(probability)).sum())} probabilities are not finite; predict again")
    classes = probability.shape[1]
    if truth.ndim == 1 and not ((truth >= 0) & (truth < classes)).all():
        raise EvaluationError(f"class numbers reach from {truth.min()} to {truth.max()}; there are {classes} classes")
    holds = np.asarray(truth, bool) if truth.ndim == 2 else truth[:, None] == np.arange(classes)  # (N, C)
    right = (probability >= 0.5) == holds if truth.ndim == 2 else probability.argmax(1) == truth
    told_apart = np.flatnonzero(holds.any(0) & ~holds.all(0))
    aucs = [float(metrics.roc_auc_score(holds[:, c], probability[:, c])) for c in told_apart]
    return TaskFigures(float(right.mean()), float(np.mean(aucs)) if aucs else None, len(truth))
