"""Several questions to one slide: each task has a query of the pooling, its classes and its loss.

Logits of all tasks stand side by side: task 0's classes first, then task 1's, ...

Shapes: B slides, n slides or tiles, T tasks, C classes of all tasks together, C_t of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from wsi_ips.labels import Task, Truth

UNKNOWN = -1
"""Label of a slide of which a single-label task does not know the class; NaN in a multi-label task."""


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
    totals: Sequence[Tensor] | None = None,
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
    totals
        Per task: what the sum over these slides is divided by where they are a part of more, of :func:`label_totals`;
        the losses of all parts then add up to that of the whole. None: these slides are all.

    Returns
    -------
    torch.Tensor
        A scalar; a task of which no label is known counts as 0.
    """
    losses = []
    given = weights if weights is not None else [None] * len(tasks)
    whole = totals if totals is not None else [None] * len(tasks)
    for task, part, truth, weight, total in zip(tasks, _split(logits, tasks), truths, given, whole, strict=True):
        if task.kind == "single":
            losses.append(_single(part, truth, weight, label_smoothing, total))
        else:
            losses.append(_multi(part, truth, weight, total))
    return torch.stack(losses).mean()


def label_totals(
    truths: Sequence[Tensor], tasks: Sequence[Task], weights: Sequence[Tensor | None] | None = None
) -> list[Tensor]:
    """Per task what :func:`task_loss` divides by: the weight of the known labels, a scalar.

    Parameters as for :func:`task_loss`. Those of several parts of the slides add up to that of all.
    """
    totals = []
    given = weights if weights is not None else [None] * len(tasks)
    for task, truth, weight in zip(tasks, truths, given, strict=True):
        if task.kind == "multi":
            totals.append(_known_classes(truth).sum())
        else:
            known = truth[truth != UNKNOWN]
            totals.append(known.new_tensor(len(known)) if weight is None else weight[known].sum())
    return totals


def task_losses_each(
    logits: Tensor,
    truths: Sequence[Tensor],
    tasks: Sequence[Task],
    *,
    weights: Sequence[Tensor | None],
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss of each row in each task, shape (n, T); 0 where its label is not known.

    Parameters as for :func:`task_loss`, n in place of B. In a multi-label task it is the mean over the classes that are
    known.
    """
    losses = []
    for task, part, truth, weight in zip(tasks, _split(logits, tasks), truths, weights, strict=True):
        if task.kind == "single":
            known = truth != UNKNOWN  # (n,)
            each = functional.cross_entropy(
                part, truth.clamp_min(0), weight=weight, label_smoothing=label_smoothing, reduction="none"
            )
            losses.append(each * known)
        else:
            losses.append(_multi_each(part, truth, weight).sum(1) / _known_classes(truth).clamp_min(1))
    return torch.stack(losses, 1)


def positive_margin(logits: Tensor, task: Task) -> Tensor:
    """How far a task's last class is ahead, from that task's logits, shape (..., C_t) to (...).

    Single-label: its logit less the mean of the others; with two classes these are its log-odds. Multi-label: its
    logit, its log-odds. Linear in the logits, so that shares of logits are shares of it.
    """
    if task.kind == "multi":
        return logits[..., -1]
    return logits[..., -1] - logits[..., :-1].mean(-1)


def share_right(logits: Tensor, truths: Sequence[Tensor], tasks: Sequence[Task]) -> float:
    """Share of answers that are right, mean over the tasks of which something is known; NaN where nothing is.

    An answer is the most probable class of a slide, or in a multi-label task whether a class holds.
    """
    shares = []
    for task, part, truth in zip(tasks, _split(logits, tasks), truths, strict=True):
        known = truth != UNKNOWN if task.kind == "single" else ~truth.isnan()
        right = part.argmax(-1) == truth if task.kind == "single" else (part > 0) == (truth > 0)
        if known.any():
            shares.append(float(right[known].float().mean()))
    return sum(shares) / len(shares) if shares else math.nan


def is_negative(truths: Sequence[Tensor], tasks: Sequence[Task]) -> Tensor:
    """Whether a slide holds nothing but the absence of each task's findings, bool, shape (B, T).

    Single-label: it is of the first class. Multi-label: no class holds.
    """
    return torch.stack(
        [
            truth == 0 if task.kind == "single" else truth.nan_to_num().sum(1) == 0
            for task, truth in zip(tasks, truths, strict=True)
        ],
        1,
    )


def is_known(truths: Sequence[Tensor], tasks: Sequence[Task]) -> Tensor:
    """Whether anything is known of a slide in each task, bool, shape (B, T)."""
    return torch.stack(
        [
            truth != UNKNOWN if task.kind == "single" else ~truth.isnan().all(1)
            for task, truth in zip(tasks, truths, strict=True)
        ],
        1,
    )


def truth_tensors(truths: Sequence[Sequence[Truth]], tasks: Sequence[Task]) -> list[Tensor]:
    """Truths of B slides, T each, as :func:`task_loss` takes them: a tensor per task."""
    columns = [[entry[number] for entry in truths] for number in range(len(tasks))]
    tensors = []
    for task, column in zip(tasks, columns, strict=True):
        if task.kind == "single":
            tensors.append(torch.tensor([UNKNOWN if entry is None else entry for entry in column]))
        else:
            unknown = (math.nan,) * task.width
            tensors.append(torch.tensor([unknown if entry is None else entry for entry in column], dtype=torch.float32))
    return tensors


def _single(
    logits: Tensor, truth: Tensor, weight: Tensor | None, label_smoothing: float, total: Tensor | None
) -> Tensor:
    known = truth != UNKNOWN  # (B,)
    if not known.any():
        return logits.sum() * 0
    loss = partial(functional.cross_entropy, weight=weight, label_smoothing=label_smoothing)
    if total is None:
        return loss(logits[known], truth[known])
    return loss(logits[known], truth[known], reduction="sum") / total


def _multi(logits: Tensor, truth: Tensor, weight: Tensor | None, total: Tensor | None) -> Tensor:
    total = _known_classes(truth).sum() if total is None else total
    return _multi_each(logits, truth, weight).sum() / total.clamp_min(1)


def _multi_each(logits: Tensor, truth: Tensor, weight: Tensor | None) -> Tensor:
    """Loss of each class, 0 where it is not known, shape (B, C_t)."""
    each = functional.binary_cross_entropy_with_logits(
        logits, truth.nan_to_num().to(logits), pos_weight=weight, reduction="none"
    )
    return each * ~truth.isnan()


def _known_classes(truth: Tensor) -> Tensor:
    """How many classes of each slide are known, shape (B,)."""
    return (~truth.isnan()).sum(1)


def _split(logits: Tensor, tasks: Sequence[Task]) -> tuple[Tensor, ...]:
    """(..., C) to one (..., C_t) per task."""
    parts: tuple[Tensor, ...] = logits.split([task.width for task in tasks], dim=-1)
    return parts
