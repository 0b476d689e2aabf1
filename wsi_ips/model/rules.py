"""Which tiles are kept, given the attention logits of all of them. Pure functions of logits.

Three rules, all "(logits of S tiles, M) to the positions of the kept tiles, best first":

:func:`exact`
    The M highest of the softmax over the **whole slide**, averaged over queries and heads. Independent of the
    order of tiles, of chunks and of shards.
:func:`paper`
    The greedy rule of Bergner et al., 2023, algorithm 1, as their code runs it. It takes the softmax anew inside each
    buffer and chunk, so with H·T > 1 a tile's rank depends on its company: it is no top-M of any fixed score, and
    order and chunk size change the result. With H = T = 1 both rules agree. For comparison only.
:func:`even`
    M tiles at equal steps: a systematic sample, for poolings that score all tiles alike, and to see what selection
    is worth.

Shapes: S scanned tiles of a slide, M kept at most, I tiles of an iteration, T queries, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
TileIds = NDArray[np.int64]
Positions = NDArray[np.intp]

Rule = Callable[[Floats, int], Positions]
"""(logits of the scanned tiles in order of id, shape (S, T, H); M) -> positions of min(M, S) tiles, best first."""

SelectionName = Literal["exact", "paper", "even"]


def log_sum_exp(logits: Doubles) -> Doubles:
    """Log-sum-exp over the first axis, shape (n, T, H) to (T, H); logits must be finite."""
    top = logits.max(axis=0)
    return np.asarray(top + np.log(np.exp(logits - top).sum(axis=0)))


def selection_score(logits: Floats, total: Doubles | None = None) -> Doubles:
    """Mean softmax attention over queries and heads.

    Parameters
    ----------
    logits
        Shape (n, T, H).
    total
        Log-sum-exp over the whole slide, shape (T, H); computed from ``logits`` where None.

    Returns
    -------
    numpy.ndarray
        float64, shape (n,); sums to 1 over the tiles that ``total`` covers.
    """
    wide = logits.astype(np.float64)
    total = log_sum_exp(wide) if total is None else total
    return np.asarray(np.exp(wide - total).mean(axis=(1, 2)))


def best_first(score: Doubles, tiles: NDArray[np.integer], count: int) -> Positions:
    """Positions of the ``count`` highest scores, best first, equal scores by tile id."""
    return np.lexsort((tiles, -score))[:count]


def exact(logits: Floats, memory_size: int) -> Positions:
    """The M highest selection scores of the slide; equal scores in order of id."""
    return best_first(selection_score(logits), np.arange(len(logits)), memory_size)


def paper(logits: Floats, memory_size: int, *, iteration_size: int) -> Positions:
    """The greedy rule of Bergner et al., 2023, algorithm 1.

    The buffer starts with the first M tiles, unseen. Each iteration joins the next I tiles to it, takes the softmax
    per query and head over those M + I only, averages over heads and queries, and keeps the M highest.

    As in the published code with ``shuffle: false``: tiles come in the order given (that of their ids in a scan,
    that is row by row); the published default shuffles them. Where the code leaves something open or differs: equal
    scores go by position, lowest first (``torch.topk`` promises no order); a slide with no more than M tiles
    returns them best first (there: in the order given).

    Parameters
    ----------
    logits
        Shape (S, T, H), in the order in which tiles are met.
    memory_size
        Tiles kept (M).
    iteration_size
        Tiles joined per iteration (I).
    """
    kept = np.arange(min(memory_size, len(logits)))
    if len(logits) <= memory_size:
        return exact(logits, memory_size)
    for start in range(memory_size, len(logits), iteration_size):
        candidates = np.concatenate([kept, np.arange(start, min(start + iteration_size, len(logits)))])
        kept = candidates[best_first(selection_score(logits[candidates]), candidates, memory_size)]
    return kept


def even(logits: Floats, memory_size: int) -> Positions:
    """M positions at equal steps over the S tiles, ascending, whatever the logits."""
    count = min(memory_size, len(logits))
    return (2 * np.arange(count) + 1) * len(logits) // (2 * count)


def selection_rule(name: SelectionName, *, iteration_size: int) -> Rule:
    """The rule of recipe key ``model.selection``; ``iteration_size`` matters to `paper` only."""
    return partial(paper, iteration_size=iteration_size) if name == "paper" else {"exact": exact, "even": even}[name]
