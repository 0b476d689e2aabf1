"""Patch flipping: whether the tiles that a score calls relevant are those the decision rests on.

Tiles are taken away in the order of a score, and the model decides anew on what is left. The order most relevant first
should make the probability fall at once, the order least relevant first should leave it for long. Nothing of the truth
is asked: a score can be faithful to a model that is wrong.

Sources: Samek et al., IEEE TNNLS 2017 (perturbing regions in the order of relevance, the area over the curve); Blücher,
Vielhaben and Strodthoff, 2024 (the gain between both orders, which does not depend on how far the model is led astray
by taking away as such); Hense et al., xMIL, NeurIPS 2024 (patches taken out of the bag of a slide). There the order
ends with an empty slide, here with one tile, for a slide without tiles has no probability.

Shapes: N tiles of a slide, S steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import EvaluationError

Remaining = Callable[[NDArray[np.intp]], float]
"""Tiles that are left, ascending, shape (n,), to the slide's probability."""


@dataclass(frozen=True)
class Flipping:
    """Curves of one slide.

    Attributes
    ----------
    removed
        Share of the tiles taken away, 0 to (N - 1) / N, shape (S,).
    most_first, least_first
        Probability of the slide after each step in the two orders, shape (S,).
    """

    removed: NDArray[np.float64]
    most_first: NDArray[np.float64]
    least_first: NDArray[np.float64]

    @property
    def gain(self) -> float:
        """Mean of "least first" less mean of "most first" over the share removed, -1 to 1; 0 is what chance gains."""
        width = self.removed[-1] - self.removed[0]
        return float(np.trapezoid(self.least_first - self.most_first, self.removed) / width)


def patch_flipping(
    score: NDArray[np.floating], probability_of: Remaining, *, steps: int = 24, rng: np.random.Generator
) -> Flipping:
    """Take tiles away in the order of a score and ask the model again.

    Parameters
    ----------
    score
        Higher means more relevant, shape (N,), N at least 2.
    probability_of
        The model, on the tiles that are left; never none.
    steps
        At so many places of the order it is asked (at most N), evenly spread: from nothing removed to all but one.
    rng
        Order of tiles with equal scores.

    Raises
    ------
    EvaluationError
        Fewer than two tiles, or a score that is not finite.
    """
    count = len(score)
    if count < 2 or not np.isfinite(score).all():
        raise EvaluationError(f"{count} tiles: patch flipping needs two or more, all with a finite score")
    least = np.lexsort((rng.permutation(count), score))  # ascending
    gone = np.unique(np.linspace(0, count - 1, min(steps, count)).round().astype(int))
    most_first = [probability_of(np.sort(least[: count - n])) for n in gone]
    least_first = [probability_of(np.sort(least[n:])) for n in gone]
    return Flipping(gone / count, np.array(most_first), np.array(least_first))
