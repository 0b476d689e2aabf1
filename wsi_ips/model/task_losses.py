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
    known: Tensor | None = None,
) -> Tensor:
    """Compute the mean over tasks of the mean loss of the labelled slides; a task without labels counts as 0.

    It is computed from logits; the published code takes the logarithm of probabilities plus 1e-6. ``known`` is the
    number of labelled slides of a larger set, shape (T,), so that the losses of its parts add up to its loss. Weights
    do not divide: they are 1 on average over the training slides, so that each class has its share however few slides
    are in a step.
    """
    each = task_losses_each(logits, targets, tasks, weights=weights or [None] * len(tasks))  # (n, T)
    known = is_known(targets, tasks).sum(0) if known is None else known
    return (each.sum(0) / known.clamp_min(1)).mean()


def task_losses_each(
    logits: Tensor, targets: Sequence[Tensor], tasks: Sequence[Task], *, weights: Sequence[Tensor | None]
) -> Tensor:
    """Compute the weighted loss of each row in each task, shape (n, T); 0 where its label is unknown.

    In a multi-label task it is the mean over the known classes. ``weights`` are those of
    :func:`wsi_ips.training.loss.class_weights`; None weighs all classes alike.
    """
    losses = []
    for task, part, truth, weight in zip(tasks, _split(logits, tasks), targets, weights, strict=True):
        if task.kind == "single":
            held = truth.clamp_min(0)  # (n,), a class number also where it is unknown
            each = functional.cross_entropy(part, held, reduction="none") * (truth != UNKNOWN)
            losses.append(each if weight is None else each * weight[held])
        else:
            holds, known = truth.nan_to_num().to(part), ~truth.isnan()  # (n, C_t)
            each = functional.binary_cross_entropy_with_logits(part, holds, reduction="none") * known
            each = each if weight is None else each * torch.where(holds > 0, weight[1], weight[0])
            losses.append(each.sum(1) / known.sum(1).clamp_min(1))
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
            holds, is_known = share.nan_to_num(), ~share.isnan()  # (n, C_t)
            each = functional.binary_cross_entropy_with_logits(part, holds, reduction="none") * is_known
            each = each if weight is None else each * torch.lerp(weight[0], weight[1], holds)
            losses.append(each.sum(1) / is_known.sum(1).clamp_min(1))
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
    """Return which slides hold nothing to find in each task, bool, shape (B, T); none in a task without background.

    Single-label: the first class applies. Multi-label: no class applies.
    """
    return torch.stack(
        [
            (truth == 0 if task.kind == "single" else truth.nan_to_num().sum(1) == 0) & task.has_background
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


def _split(logits: Tensor, tasks: Sequence[Task]) -> tuple[Tensor, ...]:
    """Split (..., C) into one (..., C_t) per task."""
    parts: tuple[Tensor, ...] = logits.split([task.width for task in tasks], dim=-1)
    return parts
