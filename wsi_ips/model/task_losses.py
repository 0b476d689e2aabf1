"""Probabilities and losses of several tasks on one slide; each task has its own query of the pooling.

The logits of all tasks are concatenated: task 0's classes first, then task 1's, ...

Shapes: B slides, n slides or tiles, T tasks, C classes of all tasks together, C_t of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from wsi_ips.labels import Target, Task

UNKNOWN = -1  # class number of a slide without a label in a single-label task; a multi-label task uses NaN


def probabilities(logits: Tensor, tasks: Sequence[Task]) -> Tensor:
    """Turn logits into class probabilities, softmax or sigmoid within each task, shape (..., C)."""
    parts = _split(logits, tasks)
    return torch.cat(
        [p.softmax(-1) if t.kind == "single" else p.sigmoid() for t, p in zip(tasks, parts, strict=True)], -1
    )


def task_loss(
    logits: Tensor,
    targets: Sequence[Tensor],
    tasks: Sequence[Task],
    *,
    weights: Sequence[Tensor | None] | None = None,
    totals: Sequence[Tensor] | None = None,
) -> Tensor:
    """Compute the mean over tasks of the mean loss of the labelled slides; a task without labels counts as 0.

    It is computed from logits; the published code takes the logarithm of probabilities plus 1e-6. ``totals`` are the
    divisors of a larger set of slides (:func:`label_totals`), so that the losses of its parts add up to its loss.
    """
    losses = []
    given = weights if weights is not None else [None] * len(tasks)
    whole = totals if totals is not None else [None] * len(tasks)
    for task, part, truth, weight, total in zip(tasks, _split(logits, tasks), targets, given, whole, strict=True):
        if task.kind == "single":
            losses.append(_single(part, truth, weight, total))
        else:
            losses.append(_multi(part, truth, weight, total))
    return torch.stack(losses).mean()


def label_totals(
    targets: Sequence[Tensor], tasks: Sequence[Task], weights: Sequence[Tensor | None] | None = None
) -> list[Tensor]:
    """Return the divisor of :func:`task_loss` per task: the weight of the known labels, a scalar.

    The divisors of disjoint sets of slides add up to that of all.
    """
    totals = []
    given = weights if weights is not None else [None] * len(tasks)
    for task, truth, weight in zip(tasks, targets, given, strict=True):
        if task.kind == "multi":
            totals.append(_known_classes(truth).sum())
        else:
            known = truth[truth != UNKNOWN]
            totals.append(known.new_tensor(len(known)) if weight is None else weight[known].sum())
    return totals


def task_losses_each(
    logits: Tensor, targets: Sequence[Tensor], tasks: Sequence[Task], *, weights: Sequence[Tensor | None]
) -> Tensor:
    """Compute the loss of each row in each task, shape (n, T); 0 where its label is unknown.

    In a multi-label task it is the mean over the known classes.
    """
    losses = []
    for task, part, truth, weight in zip(tasks, _split(logits, tasks), targets, weights, strict=True):
        if task.kind == "single":
            known = truth != UNKNOWN  # (n,)
            each = functional.cross_entropy(part, truth.clamp_min(0), weight=weight, reduction="none")
            losses.append(each * known)
        else:
            losses.append(_multi_each(part, truth, weight).sum(1) / _known_classes(truth).clamp_min(1))
    return torch.stack(losses, 1)


def known_shares(shares: Tensor, tasks: Sequence[Task]) -> tuple[Tensor, Tensor]:
    """Return what is known of tiles in each task, given the share of each class, (..., C), NaN where unknown.

    The first result is whether anything is, bool, shape (..., T); the second how much of a tile is not background.
    """
    known, lesion = [], []
    for task, part in zip(tasks, _split(shares, tasks), strict=True):
        given = part.nan_to_num()
        known.append(~part.isnan().all(-1))
        with_background = task.kind == "single" and task.has_background
        lesion.append(1 - given[..., 0] if with_background else given.sum(-1).clamp_max(1))
    return torch.stack(known, -1), torch.stack(lesion, -1)


def share_losses_each(
    logits: Tensor, shares: Tensor, tasks: Sequence[Task], *, weights: Sequence[Tensor | None]
) -> Tensor:
    """Compute the loss of each row in each task, as :func:`task_losses_each`, against shares of classes, (n, C)."""
    losses = []
    for task, part, share, weight in zip(tasks, _split(logits, tasks), _split(shares, tasks), weights, strict=True):
        if task.kind == "single":
            known = share.nan_to_num()  # 0 in a row that is not known
            losses.append(functional.cross_entropy(part, known, weight=weight, reduction="none"))
        else:
            losses.append(_multi_each(part, share, weight).sum(1) / _known_classes(share).clamp_min(1))
    return torch.stack(losses, 1)


def share_right(logits: Tensor, targets: Sequence[Tensor], tasks: Sequence[Task]) -> float:
    """Return the share of correct answers, averaged over the tasks with labels; NaN without any label.

    An answer is the most probable class of a slide, or, in a multi-label task, whether a class applies.
    """
    shares = []
    for task, part, truth in zip(tasks, _split(logits, tasks), targets, strict=True):
        known = truth != UNKNOWN if task.kind == "single" else ~truth.isnan()
        right = part.argmax(-1) == truth if task.kind == "single" else (part > 0) == (truth > 0)
        if known.any():
            shares.append(float(right[known].float().mean()))
    return sum(shares) / len(shares) if shares else math.nan


def is_negative(targets: Sequence[Tensor], tasks: Sequence[Task]) -> Tensor:
    """Return which slides are negative in each task, bool, shape (B, T).

    Single-label: the first class applies. Multi-label: no class applies.
    """
    return torch.stack(
        [
            truth == 0 if task.kind == "single" else truth.nan_to_num().sum(1) == 0
            for task, truth in zip(tasks, targets, strict=True)
        ],
        1,
    )


def is_known(targets: Sequence[Tensor], tasks: Sequence[Task]) -> Tensor:
    """Return which slides have any label in each task, bool, shape (B, T)."""
    return torch.stack(
        [
            truth != UNKNOWN if task.kind == "single" else ~truth.isnan().all(1)
            for task, truth in zip(tasks, targets, strict=True)
        ],
        1,
    )


def target_tensors(targets: Sequence[Sequence[Target]], tasks: Sequence[Task]) -> list[Tensor]:
    """Convert the targets of B slides, T each, for :func:`task_loss`: a tensor per task."""
    columns = [[entry[number] for entry in targets] for number in range(len(tasks))]
    tensors = []
    for task, column in zip(tasks, columns, strict=True):
        if task.kind == "single":
            tensors.append(torch.tensor([UNKNOWN if entry is None else entry for entry in column]))
        else:
            unknown = (math.nan,) * task.width
            tensors.append(torch.tensor([unknown if entry is None else entry for entry in column], dtype=torch.float32))
    return tensors


def _single(logits: Tensor, truth: Tensor, weight: Tensor | None, total: Tensor | None) -> Tensor:
    known = truth != UNKNOWN  # (B,)
    if not known.any():
        return logits.sum() * 0
    if total is None:
        return functional.cross_entropy(logits[known], truth[known], weight=weight)
    return functional.cross_entropy(logits[known], truth[known], weight=weight, reduction="sum") / total


def _multi(logits: Tensor, truth: Tensor, weight: Tensor | None, total: Tensor | None) -> Tensor:
    total = _known_classes(truth).sum() if total is None else total
    return _multi_each(logits, truth, weight).sum() / total.clamp_min(1)


def _multi_each(logits: Tensor, truth: Tensor, weight: Tensor | None) -> Tensor:
    """Compute the loss of each class, 0 where it is unknown, shape (B, C_t)."""
    each = functional.binary_cross_entropy_with_logits(
        logits, truth.nan_to_num().to(logits), pos_weight=weight, reduction="none"
    )
    return each * ~truth.isnan()


def _known_classes(truth: Tensor) -> Tensor:
    """Count the known classes of each slide, shape (B,)."""
    return (~truth.isnan()).sum(1)


def _split(logits: Tensor, tasks: Sequence[Task]) -> tuple[Tensor, ...]:
    """Split (..., C) into one (..., C_t) per task."""
    parts: tuple[Tensor, ...] = logits.split([task.width for task in tasks], dim=-1)
    return parts
