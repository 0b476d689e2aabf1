"""Which slides each step of an epoch learns from: each once, or balanced over the classes. Follows from the seed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np


class Visit(NamedTuple):
    """One use of a slide in an epoch: its number among the training slides, and how often it was used before."""

    slide: int
    view: int = 0


def epoch_order(groups: Sequence[Hashable | None], *, seed: int, epoch: int, balanced: bool) -> list[Visit]:
    """Return the visits of an epoch, as many as there are slides.

    Parameters
    ----------
    groups
        Class of each slide; None where it is unknown.
    seed, epoch
        Determine the order.
    balanced
        Spread the visits evenly over the classes. Slides of a rare class come several times, each as often as the
        others of its class or once more; some slides of a frequent class are left out, other ones in each epoch. Slides
        of unknown class come once. If False, each slide comes once.
    """
    rng = np.random.default_rng([seed, epoch])
    if not balanced:
        return [Visit(int(slide)) for slide in rng.permutation(len(groups))]
    members: dict[Hashable, list[int]] = {}
    for slide, group in enumerate(groups):
        if group is not None:
            members.setdefault(group, []).append(slide)
    visits = [Visit(slide) for slide, group in enumerate(groups) if group is None]
    extra = rng.permutation(len(members))  # the classes that get one more visit where the division has a remainder
    each, remainder = divmod(len(groups) - len(visits), max(1, len(members)))
    for rank, slides in zip(extra, members.values(), strict=True):
        count = each + (rank < remainder)
        rounds = -(-count // len(slides))
        turns = [Visit(int(slide), view) for view in range(rounds) for slide in rng.permutation(slides)]
        visits += turns[:count]
    return [visits[i] for i in rng.permutation(len(visits))]


def epoch_steps(
    groups: Sequence[Hashable | None], *, seed: int, epoch: int, steps: int, balanced: bool
) -> list[list[Visit]]:
    """Return the visits of :func:`epoch_order`, split into the steps of the epoch; the first steps get one more."""
    order = epoch_order(groups, seed=seed, epoch=epoch, balanced=balanced)
    return [[order[i] for i in part] for part in np.array_split(np.arange(len(order)), steps)]
