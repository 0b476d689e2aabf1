"""Several questions to one slide: each task has a query of the pooling, its classes and its loss.

Logits of all tasks stand side by side: task 0's classes first, then task 1's, ...

Shapes: B slides, T tasks, C classes of all tasks together, C_t of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

UNKNOWN = -1
"""Label of a slide of which a single-label task does not know the class; NaN in a multi-label task."""


@dataclass(frozen=True)
class Task:
    """One question to a slide.

    Attributes
    ----------
    name
        For messages and stored weights.
    classes
        Number of its classes (C_t).
    kind
        ``single``: exactly one class holds (softmax); ``multi``: each class holds or not (sigmoid).
    """

    name: str
    classes: int
    kind: Literal["single", "multi"] = "single"


def probabilities(logits: Tensor, tasks: Sequence[Task]) -> Tensor:
    """Class probabilities: softmax or sigmoid within each task, shape (..., C) to (..., C)."""
    parts = _split(logits, tasks)
    return torch.cat(
        [p.softmax(-1) if t.kind == "single" else p.sigmoid() for t, p in zip(tasks, parts, strict=True)], -1
    )


def task_loss(
    logits: Tensor,
    truths: Sequence[Tensor],
    tasks: Sequence[Task],
    *,
    weights: Sequence[Tensor | None] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean over tasks of the mean loss of the slides whose label is known.

    Computed from logits; the published code takes the logarithm of probabilities plus 1e-6.

    Parameters
    ----------
    logits
        Shape (B, C).
    truths
        Per task: class numbers, int64, shape (B,), or :data:`UNKNOWN`; where ``kind`` is ``multi`` 0, 1 or NaN,
        float, shape (B, C_t).
    tasks
        In the order of ``logits``.
    weights
        Per task: weight of each class (of its positives where ``kind`` is ``multi``), shape (C_t,), or None.
    label_smoothing
        Of single-label tasks.

    Returns
    -------
    torch.Tensor
        A scalar; a task of which no label is known counts as 0.
    """
    losses = []
    given = weights if weights is not None else [None] * len(tasks)
    for task, part, truth, weight in zip(tasks, _split(logits, tasks), truths, given, strict=True):
        if task.kind == "single":
            losses.append(_single(part, truth, weight, label_smoothing))
        else:
            losses.append(_multi(part, truth, weight))
    return torch.stack(losses).mean()


def _single(logits: Tensor, truth: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
    known = truth != UNKNOWN  # (B,)
    if not known.any():
        return logits.sum() * 0
    return functional.cross_entropy(logits[known], truth[known], weight=weight, label_smoothing=label_smoothing)


def _multi(logits: Tensor, truth: Tensor, weight: Tensor | None) -> Tensor:
    known = ~truth.isnan()  # (B, C_t)
    each = functional.binary_cross_entropy_with_logits(
        logits, truth.nan_to_num().to(logits), pos_weight=weight, reduction="none"
    )
    return (each * known).sum() / known.sum().clamp_min(1)


def _split(logits: Tensor, tasks: Sequence[Task]) -> tuple[Tensor, ...]:
    """(..., C) to one (..., C_t) per task."""
    parts: tuple[Tensor, ...] = logits.split([task.classes for task in tasks], dim=-1)
    return parts
