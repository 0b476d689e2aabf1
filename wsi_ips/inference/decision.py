"""Classify a slide from the probabilities of its single tiles instead of from the pooled ones it kept.

The cross-attention keeps the tiles that decided on the training slides. On slides of other donors it may keep others,
while the single-tile probability still ranks tumour first (benchmarks/RESULTS.md, "Real textures"). This is the top-k
mean of multiple-instance learning, computed from stored scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from wsi_ips.labels import Task

DECIDING_TILES = 8
"""Over 19 trainings, 8 and 16 separate slides equally well, 4 a little worse (DECISIONS D84)."""
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
SINGLE_STEP = 2.0**-24
"""Smallest distance of a float32 from 1."""


def by_tiles(task: Task, tile_probability: NDArray[np.floating]) -> tuple[float, ...]:
    """Compute the class probabilities of a slide from the highest tiles of each class.

    The log-odds of a class are the mean over its :data:`DECIDING_TILES` highest tiles (over all, where there are
    fewer): against the first class, which stands for no finding, or, where several classes may hold, against its
    absence.

    Parameters
    ----------
    task
        Task to answer.
    tile_probability
        Probabilities of the task's classes for each tile alone, shape (N, C_t), N at least 1.

    Returns
    -------
    tuple of float
        Per class; they sum to 1 where one class holds. They are not calibrated: a threshold must come from validation
        slides.
    """
    chance = np.maximum(tile_probability, LEAST_PROBABILITY).astype(np.float64)
    if task.kind == "multi":
        odds = np.log(chance) - np.log(np.maximum(1 - chance, SINGLE_STEP))  # (N, C)
        return tuple(special.expit(_mean_of_highest(odds)).tolist())
    odds = np.log(chance[:, 1:]) - np.log(chance[:, :1])  # (N, C - 1)
    return tuple(special.softmax(np.concatenate([[0.0], _mean_of_highest(odds)])).tolist())


def _mean_of_highest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average the highest values of each column, shape (N, C) to (C,)."""
    return np.asarray(np.sort(values, axis=0)[-DECIDING_TILES:].mean(axis=0))
