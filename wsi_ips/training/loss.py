"""The loss of a step: of each slide, and of each kept tile alone, with balanced classes.

The loss of single tiles teaches the single-tile probability of the heatmap.

Shapes: B slides, K kept tiles (padded, masked), k of all kept tiles, T tasks (one query each), C classes of all tasks,
C_t of one, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wsi_ips.errors import TrainingError
from wsi_ips.labels import Task
from wsi_ips.model.net import IpsNet
from wsi_ips.model.pooling import selection_weights
from wsi_ips.model.task_losses import (
    UNKNOWN,
    is_negative,
    known_shares,
    share_losses_each,
    task_loss,
    task_losses_each,
)
from wsi_ips.training.tracking import attention_entropy

ROWS_AT_A_TIME = 256  # tiles whose activations are kept at a time


def class_weights(truth: Tensor, task: Task, *, balanced: bool) -> Tensor:
    """Return the weights of a task's classes, inverse to their frequency; all 1 if not ``balanced``.

    Single-label: shape (C_t,). Multi-label: shape (2, C_t), of slides without a class and with it. The weights of the
    labelled slides are 1 on average, and those of each class (with and without it) add up to the same. Raises a
    :class:`TrainingError` where the training slides are all alike.
    """
    if task.kind == "single":
        counts = torch.bincount(truth[truth != UNKNOWN], minlength=task.width).double()
        weights = counts.sum() / (counts.clamp_min(1) * (counts > 0).sum())
        told_apart = int((counts > 0).sum()) > 1
        seen = ", ".join(f"{name} {int(count)}" for name, count in zip(task.classes, counts, strict=True))
    else:
        counts = torch.stack([(truth == 0).sum(0), (truth == 1).sum(0)]).double()  # (2, C_t)
        both = (counts > 0).all(0)
        weights = torch.where(both, counts.sum(0) / (2 * counts.clamp_min(1)), 1.0)
        told_apart = bool(both.any())
        seen = ", ".join(
            f"{name} {int(b)} of {int(a + b)}" for name, (a, b) in zip(task.classes, counts.T, strict=True)
        )
    if not told_apart:
        raise TrainingError(
            f"task `{task.name}`: the training slides are all alike ({seen}), there is nothing to tell apart; check "
            "its column and column `split` of the manifest"
        )
    return weights.float() if balanced else torch.ones_like(weights).float()


def guess(truths: Sequence[Tensor], tasks: Sequence[Task], weights: Sequence[Tensor], *, even: bool) -> Tensor:
    """Return the class logits, (C,), that have the least loss if they are the answer for every slide.

    ``truths`` are the training labels, a tensor per task; ``even``: all classes of the first task are visited equally
    often.
    """
    parts = []
    for number, (truth, task, weight) in enumerate(zip(truths, tasks, weights, strict=True)):
        if task.kind == "single":
            counts = torch.bincount(truth[truth != UNKNOWN], minlength=task.width).double()
        else:
            counts = torch.stack([(truth == 0).sum(0), (truth == 1).sum(0)]).double()  # (2, C_t)
        if even and number == 0:
            counts = (counts > 0).double()
        logs = (counts * weight.to(counts)).clamp_min(1e-6).log()
        parts.append(logs if task.kind == "single" else logs[1] - logs[0])
    return torch.cat(parts).float()


class SlideLosses(NamedTuple):
    """Loss of some slides and its parts."""

    loss: Tensor  # scalar
    logits: Tensor  # (B, C), of classes
    entropy: Tensor  # (B,), of attention
    of_answers: Tensor  # scalar without gradient: the loss without that of attention, to compare with that of guessing


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step; the losses of its parts, also of those in other processes, add up to it."""

    weights: Sequence[Tensor | None]  # of each class, per task; 1 on average over the training slides
    known: Tensor  # (T,), slides of the whole step whose label is known, at least 1: what losses are divided by
    tile_weight: float = 1.0  # weight of the loss of single tiles, `training.tile_loss`
    evenly: bool = False  # all kept tiles of a slide count evenly, because attention means nothing yet
    truth: Tensor | None = None  # (B, K, C), share of each class in each kept tile, NaN where unknown; None: nowhere
    drawn: int = 0  # kept tiles of the whole step, where only those with a truth of their own count, and all evenly

    def __call__(
        self, net: IpsNet, targets: Sequence[Tensor], embeddings: Tensor, mask: Tensor, own: Sequence[int] | None = None
    ) -> SlideLosses:
        """Return the loss of some slides of the step, given their kept tiles, (B, K, D), and the mask, (B, K).

        ``own`` are the slides that count, None counts all; random numbers are drawn for all of them.
        """
        logits = net(embeddings, mask)  # (B, C)
        counted = (logits, targets) if own is None else (logits[own], [truth[own] for truth in targets])
        loss = task_loss(*counted, net.tasks, weights=self.weights, known=self.known)
        if self.tile_weight:
            loss = loss + self.tile_weight * self.of_tiles(net, targets, embeddings, mask, own)
        attention = selection_weights(net.pooling.logits(embeddings), mask)  # (B, K, T)
        of_answers = loss.detach()
        if self.tile_weight and self.truth is not None:
            loss = loss + self.tile_weight * self.of_attention(attention, self.truth, net.tasks, own)
        return SlideLosses(loss, logits, attention_entropy(attention.detach(), mask), of_answers)

    def of_attention(
        self, attention: Tensor, truth: Tensor, tasks: Sequence[Task], own: Sequence[int] | None = None
    ) -> Tensor:
        """Return the loss of attention, (B, K, T), on slides where lesions and background are known among kept tiles.

        It is minus the logarithm of the share of attention that lies in lesions, mean over tasks and known slides:
        tiles that are told apart alone would otherwise be of no use to the selection, which goes by attention.
        """
        known, lesion = known_shares(truth, tasks)  # (B, K, T)
        tiny = torch.finfo(attention.dtype).tiny
        sums = [(part * known).sum(1) for part in (lesion, 1 - lesion, attention * lesion, attention * (1 - lesion))]
        has_lesion, has_rest, inside, outside = sums  # (B, T)
        each = -(inside.clamp_min(tiny) / (inside + outside).clamp_min(tiny)).log()
        each = torch.where((has_lesion > 0) & (has_rest > 0), each, 0.0)
        return (each if own is None else each[own]).sum(0).div(self.known * len(tasks)).sum()

    def of_tiles(
        self, net: IpsNet, targets: Sequence[Tensor], embeddings: Tensor, mask: Tensor, own: Sequence[int] | None = None
    ) -> Tensor:
        """Return the loss of each kept tile alone against its slide's labels, mean over tasks and known slides.

        Parameters as for the call. Tiles of a slide that holds nothing to find count evenly, for they are all alike;
        tiles of other slides count by the attention of the task's query, for only some of them show the finding. So do
        tiles of every slide in a task without background, where stroma would teach nothing but the wrong class. The
        shares carry no gradient and sum to 1 per slide and task. A tile whose truth is known counts against that
        instead, see :func:`shares_with_truth`.
        """
        tasks, counts = net.tasks, mask.sum(1)  # (B,)
        with torch.no_grad():
            attention = selection_weights(net.pooling.logits(embeddings), mask)  # (B, K, T)
        even = is_negative(targets, tasks)[:, None] | self.evenly  # (B, 1, T)
        share = torch.where(even, (mask / counts[:, None])[:, :, None], attention)  # (B, K, T)
        if self.truth is not None and self.drawn:
            share = known_shares(self.truth, tasks)[0] * self.known / self.drawn
        elif self.truth is not None:
            share = shares_with_truth(share, self.truth, mask, tasks)
        if own is not None:
            share = share * torch.zeros(len(mask), 1, 1, device=share.device).index_fill_(
                0, torch.tensor(own, dtype=torch.long, device=share.device), 1.0
            )
        share = (share / (self.known * len(tasks)))[mask]  # (k, T)

        def part(embeddings: Tensor, share: Tensor, *labels: Tensor) -> Tensor:
            alone = net.classify(net.pooling.alone(embeddings))  # (k, C)
            each = task_losses_each(alone, labels[: len(tasks)], tasks, weights=self.weights)  # (k, T)
            for truth in labels[len(tasks) :]:
                own_each = share_losses_each(alone, truth, tasks, weights=self.weights)
                each = torch.where(known_shares(truth, tasks)[0], own_each, each)
            return (each * share).sum()

        labels = [truth.repeat_interleave(counts, 0) for truth in targets]
        return in_parts(part, embeddings[mask], share, *labels, *([] if self.truth is None else [self.truth[mask]]))


def shares_with_truth(share: Tensor, truth: Tensor, mask: Tensor, tasks: Sequence[Task]) -> Tensor:
    """Return how much each kept tile counts where some have a truth of their own, (B, K, T), 1 per slide and task.

    Known tiles count as much as there are among the kept ones: half for lesions and half for background if there are
    both, so that a lesion of a few tiles counts. The others share the rest as ``share`` says.
    """
    known, lesion = known_shares(truth, tasks)  # (B, K, T)
    unknown = mask[:, :, None] & ~known
    taught = _normalised(_normalised(lesion * known) + _normalised((1 - lesion) * known))
    part_known = known.sum(1, keepdim=True) / mask.sum(1)[:, None, None]  # (B, 1, T)
    mixed = taught * part_known + _normalised(share * unknown) * (1 - part_known)
    return torch.where(part_known > 0, mixed, share)


def _normalised(shares: Tensor) -> Tensor:
    """Divide by the sum over tiles, (B, K, T); zeros stay."""
    return shares / shares.sum(1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)


def in_parts(part: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Return the sum of ``part``, a scalar, over parts of some tensors' rows, in the memory of one part.

    Each part is computed again in the backward pass, with the same random numbers. The size of a part is fixed, because
    random numbers depend on it and results must not depend on the machine.
    """
    if len(rows[0]) <= ROWS_AT_A_TIME:
        return part(*rows)
    splits = zip(*(tensor.split(ROWS_AT_A_TIME) for tensor in rows), strict=True)
    parts = [checkpoint(part, *some, use_reentrant=False) for some in splits]
    return torch.stack(parts).sum()
