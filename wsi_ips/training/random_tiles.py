"""Training start ``random-tiles``: learn from a few random tiles of many slides, so that attention means something.

What tells one slide from another (its stain) averages out over many slides.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config.learning_sections import WARM_START_TILES
from wsi_ips.training.settings import LabelledSlide, Settings


class RandomTiles:
    """The start phase; implements :class:`~wsi_ips.training.starts.Start`."""

    def __init__(self, settings: Settings) -> None:
        self.epochs = settings.section.warm_start_epochs
        batch = settings.section.batch_slides
        # A step learns from about as many tiles as one with selection, of more slides.
        self._batch_slides = max(batch, batch * settings.memory_size // WARM_START_TILES)

    def steps(self, slides: int) -> int:
        """Return the number of steps of an epoch over so many slides."""
        return math.ceil(slides / self._batch_slides)

    def tile_count(self, slide: LabelledSlide) -> int:
        """Return the number of tiles of a slide to learn from."""
        return min(WARM_START_TILES, len(slide.tiles.index))

    def tiles(self, slide: LabelledSlide, rng: np.random.Generator) -> NDArray[np.integer]:
        """Return the ids of random tiles, ascending."""
        return np.sort(rng.permutation(len(slide.tiles.index))[:WARM_START_TILES])
