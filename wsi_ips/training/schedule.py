"""When what happens: the order of slides in an epoch, the learning rate of a step. Pure, from the seed.

Whoever asks again gets the same answer, so a training that goes on needs no more than its position.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch


class Visit(NamedTuple):
    """One slide's turn in an epoch.

    Attributes
    ----------
    slide
        Its number among the training slides.
    view
        How many turns in this epoch it had before; another view has other augmentation.
    """

    slide: int
    view: int = 0


def epoch_order(groups: Sequence[Hashable | None], *, seed: int, epoch: int, balanced: bool) -> list[Visit]:
    """Visits of an epoch, as many as there are slides.

    Parameters
    ----------
    groups
        Class of each slide; None where it is not known.
    seed, epoch
        What decides the order.
    balanced
        Spread the visits evenly over the classes: slides of a rare one come several times, each as often as the others
        of its class or once more; of a frequent one other slides are left out in each epoch. Slides whose class is
        not known come once. Else each slide comes once.
    """
    rng = np.random.default_rng([seed, epoch])
    if not balanced:
        return [Visit(int(slide)) for slide in rng.permutation(len(groups))]
    members: dict[Hashable, list[int]] = {}
    for slide, group in enumerate(groups):
        if group is not None:
            members.setdefault(group, []).append(slide)
    visits = [Visit(slide) for slide, group in enumerate(groups) if group is None]
    extra = rng.permutation(len(members))  # which classes get one more where it does not come out even
    each, left_over = divmod(len(groups) - len(visits), max(1, len(members)))
    for rank, slides in zip(extra, members.values(), strict=True):
        count = each + (rank < left_over)
        rounds = -(-count // len(slides))
        turns = [Visit(int(slide), view) for view in range(rounds) for slide in rng.permutation(slides)]
        visits += turns[:count]
    return [visits[i] for i in rng.permutation(len(visits))]


def epoch_steps(
    groups: Sequence[Hashable | None], *, seed: int, epoch: int, steps: int, balanced: bool
) -> list[list[Visit]]:
    """The visits of :func:`epoch_order`, dealt to the steps of the epoch; the first ones get one more."""
    order = epoch_order(groups, seed=seed, epoch=epoch, balanced=balanced)
    return [[order[i] for i in part] for part in np.array_split(np.arange(len(order)), steps)]


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """The same rate for all parameters."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def warmup_cosine(step: int, *, warmup: int, total: int) -> float:
    """Factor of the learning rate: linear to 1 over ``warmup`` steps, then cosine to 0.001 at ``total``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.001 + 0.999 * (1 + math.cos(math.pi * min(1.0, progress))) / 2
