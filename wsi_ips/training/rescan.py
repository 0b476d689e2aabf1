"""Which tiles of a slide are scored again between two full scans.

After a full scan most tiles are far from being kept, and a few steps later most still are. In between, a scan looks at
the best by their last known score, and at some drawn at random, so that one which became interesting has a chance.
Whether that does harm is what ``benchmarks/learning/rescan.py`` measures.

Shapes: N tiles of a slide.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from wsi_ips.model.selection import Selection


class LastScores:
    """Last known selection score of every tile of every slide.

    Parameters
    ----------
    best, random
        Shares of a slide's tiles that a partial scan takes: the best by score, and others at random.
    """

    def __init__(self, *, best: float, random: float) -> None:
        self._best, self._random = best, random
        self._scores: dict[str, NDArray[np.float32]] = {}

    def keep(self, slide_id: str, tiles: int, found: Selection) -> None:
        """Remember the mean logits of the tiles that were scanned; of the others, what was known stays."""
        scores = self._scores.setdefault(slide_id, np.full(tiles, -np.inf, np.float32))
        scores[found.scanned] = found.logits.mean((1, 2))

    def partial(self, slide_id: str, *, at_least: int, rng: Generator) -> NDArray[np.int32] | None:
        """Tile ids to scan, ascending; None where nothing is known of the slide and all are due.

        Parameters
        ----------
        slide_id
            The slide.
        at_least
            Tiles at least, as many as are to be kept.
        rng
            Draws the random ones.
        """
        scores = self._scores.get(slide_id)
        if scores is None:
            return None
        count = len(scores)
        best = np.argsort(-scores, kind="stable")[: max(at_least, round(self._best * count))]
        others = np.setdiff1d(np.arange(count), best)
        drawn = rng.permutation(others)[: round(self._random * count)]
        return np.sort(np.concatenate([best, drawn])).astype(np.int32)
