"""Values of the built-in score maps, from a slide's scores. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wsi_ips.errors import ScoresError
from wsi_ips.results.score_maps import TileScores


def probability(scores: TileScores) -> NDArray[np.float32]:
    """Return the probability of the positive class of each tile alone, shape (N,)."""
    return np.asarray(scores.positive_probability, np.float32)


def attention(scores: TileScores) -> NDArray[np.float32]:
    """Return the attention of each tile as a rank within the slide, shape (N,)."""
    return attention_rank(scores.attention)


def attention_rank(attention: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the rank of each tile within its slide, 0 (least) to 1 (most); equal attention gets equal rank.

    Raises
    ------
    ScoresError
        An attention is not finite.
    """
    if not np.isfinite(attention).all():
        raise ScoresError("attention is not finite; predict the slide again")
    if len(attention) == 1:
        return np.ones(1, np.float32)
    return np.asarray((stats.rankdata(attention) - 1) / (len(attention) - 1), np.float32)
