"""Validation: measure a network on slides it does not learn from, choose the epoch to keep, stop early.

Shapes: B slides, C classes of all tasks, C_t of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from wsi_ips.config import TrainingSection
from wsi_ips.errors import DivergedError, ScoresError, TrainingError
from wsi_ips.evaluation.slide_evaluation import task_figures
from wsi_ips.labels import Target, Task
from wsi_ips.model.net import IpsNet
from wsi_ips.model.selection import Selection
from wsi_ips.model.task_losses import is_known, target_tensors, task_loss
from wsi_ips.scanning import ChunkLimit, ScanOptions, plain_patches, scan_slides, slide_logits
from wsi_ips.training.processes import Piece, Processes, divide, join_shared, piece_requests
from wsi_ips.training.settings import LabelledSlide, Settings
from wsi_ips.training.tracking import EpochRecord

LEAP = 10.0  # times the training loss of the first epoch (about that of guessing): an epoch has diverged
Select = Literal["loss", "auc"]


class Figures(NamedTuple):
    """Figures of the validation slides."""

    loss: float  # mean over tasks
    auc: float | None  # mean over classes and tasks; None where all slides are of one class


def validate(
    net: IpsNet, slides: Sequence[LabelledSlide], settings: Settings, *, processes: Processes, limit: ChunkLimit
) -> Figures:
    """Return loss and AUC of all tiles of slides, without augmentation; the same in all processes, which divide them.

    Raises a :class:`DivergedError` where the loss is not finite.
    """
    tiles, prepare = [slide.tiles for slide in slides], plain_patches(processes.device)
    division = divide([len(slide.index) for slide in tiles], processes.size)
    logits = torch.zeros(len(slides), sum(task.width for task in net.tasks))  # (B, C), rows of the others stay 0

    def classify(best: dict[int, Selection]) -> None:
        for slide, selection in best.items():
            row = slide_logits(net, [tiles[slide]], [selection], prepare, chunk_size=limit.patches)
            logits[slide] = row[0].float().cpu()

    def work() -> dict[Piece, Selection]:
        """Classify the slides that only this process scans; return its pieces of the others."""
        parts = {}
        for piece in division.pieces[processes.rank]:
            request = piece_requests([piece], tiles)
            try:
                best = scan_slides(net, request, prepare, ScanOptions(settings.memory_size, settings.compute, limit))
            except ScoresError as error:
                raise DivergedError(f"validation: {error}") from error
            if piece.slide in division.shared:
                parts[piece] = best[0]
            else:
                classify({piece.slide: best[0]})
        return parts

    found = processes.attempt(work) or {}
    joined = join_shared(processes, division, found, tiles, memory_size=settings.memory_size)
    processes.attempt(lambda: classify(joined))
    together = torch.stack([table for table in processes.gather(logits) if table is not None]).sum(0)
    labels = target_tensors([slide.targets for slide in slides], net.tasks)
    loss = float(task_loss(together, labels, net.tasks))
    if not math.isfinite(loss):
        diverged = DivergedError(
            f"validation: the loss is {loss}; training has diverged: lower `training.learning_rate` and train again"
        )
        diverged.is_told = not processes.is_first
        raise diverged
    return Figures(loss, _auc(net, together, labels))


def require_validation(section: TrainingSection, targets: Sequence[Sequence[Target]], tasks: Sequence[Task]) -> None:
    """Refuse to choose or stop by validation slides if there are none."""
    key = "patience" if section.patience is not None else "select" if section.select == "auc" else None
    if key and not targets:
        raise TrainingError(
            f"`training.{key}` needs validation slides, and none has split `val`, a label and tiles: give some that "
            f"split in the manifest (or see `wsi-ips split`), or leave `training.{key}` out"
        )
    if section.select == "auc" and not any(
        _tells_apart(*pair) for pair in zip(target_tensors(targets, tasks), tasks, strict=True)
    ):
        raise TrainingError(
            "`training.select: auc` needs validation slides of at least two classes, and yours are all alike; put "
            "others into split `val`, or leave `training.select: loss`"
        )


def best_epoch(history: Sequence[EpochRecord], select: Select) -> EpochRecord:
    """Return the epoch to keep: the best on the validation slides, the later of equals; without any the last one.

    A training loss does not show which epoch is best, but an epoch with :data:`LEAP` times the loss of the first has
    diverged and is not kept. Of equal AUCs the one with the lower loss is better.
    """
    validated = [record for record in history if record.val_loss is not None]
    sane = [record for record in history if record.loss <= LEAP * history[0].loss]
    return min(reversed(validated), key=lambda r: _merit(r, select)) if validated else sane[-1]


def epochs_since_best(history: Sequence[EpochRecord], select: Select) -> int:
    """Return the number of validated epochs since the best one."""
    validated = [record for record in history if record.val_loss is not None]
    return len(validated) - 1 - validated.index(best_epoch(validated, select)) if validated else 0


def _merit(record: EpochRecord, select: Select) -> tuple[float, ...]:
    assert record.val_loss is not None
    if select == "auc" and record.val_auc is not None:
        return (-record.val_auc, record.val_loss)
    return (record.val_loss,)


def _auc(net: IpsNet, logits: torch.Tensor, labels: Sequence[torch.Tensor]) -> float | None:  # logits (B, C)
    known = is_known(labels, net.tasks)  # (B, T)
    parts = net.probabilities(logits.double()).split([task.width for task in net.tasks], dim=-1)
    aucs = []
    for number, (task, part, truth) in enumerate(zip(net.tasks, parts, labels, strict=True)):
        rows = known[:, number] if task.kind == "single" else ~truth.isnan().any(1)
        if rows.any():
            holds = truth[rows] if task.kind == "single" else truth[rows] > 0
            aucs.append(task_figures(holds.numpy(), part[rows].numpy()).auc)
    found = [auc for auc in aucs if auc is not None]
    return sum(found) / len(found) if found else None


def _tells_apart(truth: torch.Tensor, task: Task) -> bool:
    """Return whether any class applies for some slides and not for others."""
    if task.kind == "single":
        return len(torch.unique(truth[truth >= 0])) > 1
    rows = truth[~truth.isnan().any(1)]
    return bool(len(rows) and ((rows > 0).any(0) & ~(rows > 0).all(0)).any())
