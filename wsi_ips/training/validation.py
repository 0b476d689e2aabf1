"""Measuring a network on slides it does not learn from.

Shapes: B slides, C classes of all tasks, C_t of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from wsi_ips.config import ComputeSection, TrainingSection
from wsi_ips.errors import DivergedError, ScoresError, TrainingError
from wsi_ips.evaluation.multiclass import task_figures
from wsi_ips.labels import Task, Truth
from wsi_ips.model.net import IpsNet
from wsi_ips.model.selection import Selection
from wsi_ips.model.tasks import is_known, task_loss, truth_tensors
from wsi_ips.scanning import ChunkLimit, ScanOptions, plain_patches, scan_slides, slide_logits
from wsi_ips.tiles import SlideTiles
from wsi_ips.training.plan import Piece, deal
from wsi_ips.training.shares import join_shared, piece_requests
from wsi_ips.training.world import World


class Figures(NamedTuple):
    """Mean loss over tasks, and mean AUC over classes and tasks, None where nothing is to be told apart."""

    loss: float
    auc: float | None


def validate(
    net: IpsNet,
    slides: Sequence[SlideTiles],
    truths: Sequence[Sequence[Truth]],
    *,
    memory_size: int,
    compute: ComputeSection,
    limit: ChunkLimit,
    world: World | None = None,
) -> Figures:
    """Loss and AUC of slides, one at a time, all their tiles, without augmentation.

    Several processes share the slides and come to the same figures.

    Raises
    ------
    DivergedError
        The loss is not finite.
    """
    device = next(net.parameters()).device
    world, prepare = world or World(device), plain_patches(device)
    shares = deal([len(slide.index) for slide in slides], world.size)
    logits = torch.zeros(len(slides), sum(task.width for task in net.tasks))  # (B, C), rows of the others stay 0

    def classify(slide: int, best: Selection) -> None:
        row = slide_logits(net, [slides[slide]], [best], prepare, chunk_size=limit.patches)
        logits[slide] = row[0].float().cpu()

    def work() -> dict[Piece, Selection]:
        """Classify the slides that are this process's alone; give its part of the others."""
        parts = {}
        for piece in shares.pieces[world.rank]:
            request = piece_requests([piece], slides)
            try:
                best = scan_slides(net, request, prepare, ScanOptions(memory_size, compute, limit))
            except ScoresError as error:
                raise DivergedError(f"validation: {error}") from error
            if piece.slide in shares.shared:
                parts[piece] = best[0]
            else:
                classify(piece.slide, best[0])
        return parts

    def classify_all(joined: dict[int, Selection]) -> None:
        for slide, best in joined.items():
            classify(slide, best)

    found = world.attempt(work) or {}
    joined = join_shared(world, shares, found, slides, memory_size=memory_size)
    world.attempt(lambda: classify_all(joined))
    together = world.sum_table(logits)
    known = truth_tensors(truths, net.tasks)
    loss = float(task_loss(together, known, net.tasks))
    if not math.isfinite(loss):
        diverged = DivergedError(
            f"validation: the loss is {loss}; training has diverged: lower `training.learning_rate` and train again"
        )
        diverged.is_told = not world.is_first
        raise diverged
    return Figures(loss, _auc(net, together, known))


def require_validation(section: TrainingSection, truths: Sequence[Sequence[Truth]], tasks: Sequence[Task]) -> None:
    """Refuse to choose or stop by slides that are not there.

    Raises
    ------
    TrainingError
        ``patience`` or ``select: auc`` without validation slides, or the latter with nothing to tell apart in them.
    """
    key = "patience" if section.patience is not None else "select" if section.select == "auc" else None
    if key and not truths:
        raise TrainingError(
            f"`training.{key}` goes by validation slides, and none has split `val`, a label and tiles: give some that "
            f"split in the manifest (or see `wsi-ips split`), or leave `training.{key}` out"
        )
    if section.select == "auc" and not any(
        _tells_apart(*pair) for pair in zip(truth_tensors(truths, tasks), tasks, strict=True)
    ):
        raise TrainingError(
            "`training.select: auc` needs validation slides of at least two classes, and theirs are all alike; put "
            "others into split `val`, or leave `training.select: loss`"
        )


def _auc(net: IpsNet, logits: torch.Tensor, truths: Sequence[torch.Tensor]) -> float | None:
    known = is_known(truths, net.tasks)  # (B, T)
    parts = net.probabilities(logits.double()).split([task.width for task in net.tasks], dim=-1)
    aucs = []
    for number, (task, part, truth) in enumerate(zip(net.tasks, parts, truths, strict=True)):
        rows = known[:, number] if task.kind == "single" else ~truth.isnan().any(1)
        if rows.any():
            holds = truth[rows] if task.kind == "single" else truth[rows] > 0
            aucs.append(task_figures(holds.numpy(), part[rows].numpy()).auc)
    found = [auc for auc in aucs if auc is not None]
    return sum(found) / len(found) if found else None


def _tells_apart(truth: torch.Tensor, task: Task) -> bool:
    """Whether any class holds for some slides and not for others."""
    if task.kind == "single":
        return len(torch.unique(truth[truth >= 0])) > 1
    rows = truth[~truth.isnan().any(1)]
    return bool(len(rows) and ((rows > 0).any(0) & ~(rows > 0).all(0)).any())
