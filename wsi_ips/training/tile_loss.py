"""A second loss, on each kept tile alone; it teaches the single-tile probability of the heatmap.

Shapes: B slides, K kept tiles (padded, masked), k of all kept tiles, T queries (one per task), H heads, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wsi_ips.labels import Task
from wsi_ips.model.net import IpsNet
from wsi_ips.model.pooling import selection_weights
from wsi_ips.model.tasks import is_known, is_negative

ROWS_AT_A_TIME = 256
"""Tiles of which activations are kept at a time."""


def tile_loss(
    net: IpsNet,
    embeddings: Tensor,
    mask: Tensor,
    truths: Sequence[Tensor],
    each: Callable[[Tensor, Sequence[Tensor]], Tensor],
    *,
    evenly: bool,
    known: Tensor | None = None,
) -> Tensor:
    """Loss of each kept tile alone against its slide's labels, mean over tasks and slides whose label is known.

    Tiles of a slide of the first class count evenly, for they are all of it; tiles of another class count by the
    attention of the task's query, for only some of them are. Weights carry no gradient and sum to 1 per slide and task.

    Parameters
    ----------
    net
        Pooling and heads are used.
    embeddings
        Of the kept tiles, shape (B, K, D).
    mask
        bool, shape (B, K).
    truths
        Per task, as in :func:`wsi_ips.model.tasks.task_loss`.
    each
        Class logits and truths of k tiles to their losses, shape (k, T).
    evenly
        All tiles count evenly: attention means nothing yet.
    known
        Slides whose label is known, per task, shape (T,), where these are a part of a step's; None counts them.
    """
    tasks, counts = net.tasks, mask.sum(1)  # (B,)
    with torch.no_grad():
        attention = selection_weights(net.pooling.logits(embeddings), mask)  # (B, K, T)
    even = is_negative(truths, tasks)[:, None] | evenly  # (B, 1, T)
    share = torch.where(even, (mask / counts[:, None])[:, :, None], attention)  # (B, K, T)
    known = known_slides(truths, tasks) if known is None else known  # (T,)
    share = (share / (known * len(tasks)))[mask]  # (k, T)

    def part(embeddings: Tensor, share: Tensor, *truths: Tensor) -> Tensor:
        alone = net.classify(net.pooling.alone(embeddings))  # (k, C)
        return (each(alone, truths) * share).sum()

    return in_parts(part, embeddings[mask], share, *(truth.repeat_interleave(counts, 0) for truth in truths))


def known_slides(truths: Sequence[Tensor], tasks: Sequence[Task]) -> Tensor:
    """How many slides' labels are known, per task, shape (T,), at least 1."""
    return is_known(truths, tasks).sum(0).clamp_min(1)


def in_parts(part: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Sum of a loss over parts of some rows, in the memory of one part.

    Each part is computed again in the backward pass, with the same random numbers. How many rows a part has is fixed,
    for random numbers depend on it and results must not depend on the machine.

    Parameters
    ----------
    part
        Takes the same rows of all tensors; gives a scalar.
    rows
        Tensors of one length n.
    """
    if len(rows[0]) <= ROWS_AT_A_TIME:
        return part(*rows)
    splits = zip(*(tensor.split(ROWS_AT_A_TIME) for tensor in rows), strict=True)
    parts = [checkpoint(part, *some, use_reentrant=False) for some in splits]
    return torch.stack(parts).sum()
