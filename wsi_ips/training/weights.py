"""How much each class counts in the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from wsi_ips.errors import TrainingError
from wsi_ips.labels import Task
from wsi_ips.model.tasks import UNKNOWN


def task_weights(truth: Tensor, task: Task, *, balanced: bool) -> Tensor:
    """Weights of a task's classes, shape (C_t,).

    Parameters
    ----------
    truth
        Of the training slides, as in :func:`wsi_ips.model.tasks.task_loss`.
    balanced
        Single-label: inverse to a class's frequency and 1 on average over slides. Multi-label: of the slides where
        the class holds, those where it does not to one. Else 1.

    Raises
    ------
    TrainingError
        Nothing to tell apart: fewer than two classes occur, or each class holds for all slides or for none.
    """
    if task.kind == "single":
        counts = torch.bincount(truth[truth != UNKNOWN], minlength=task.width).double()
        weights = counts.sum() / (counts.clamp_min(1) * (counts > 0).sum())
        told_apart = int((counts > 0).sum()) > 1
        seen = ", ".join(f"{name} {int(count)}" for name, count in zip(task.classes, counts, strict=True))
    else:
        holds, holds_not = (truth == 1).sum(0).double(), (truth == 0).sum(0).double()
        both = (holds > 0) & (holds_not > 0)
        weights = torch.where(both, holds_not / holds.clamp_min(1), 1.0)
        told_apart = bool(both.any())
        seen = ", ".join(
            f"{name} {int(a)} of {int(a + b)}" for name, a, b in zip(task.classes, holds, holds_not, strict=True)
        )
    if not told_apart:
        raise TrainingError(
            f"task `{task.name}`: the training slides are all alike ({seen}), there is nothing to tell apart; check "
            "its column and column `split` of the manifest"
        )
    return weights.float() if balanced else torch.ones(task.width)
