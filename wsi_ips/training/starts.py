"""Registry of training starts: what a network learns from before its attention is good enough to select tiles.

An entry's implementation takes :class:`~wsi_ips.training.settings.Settings` and returns a :class:`Start`, or None for
no start phase. To add one, write it here or in a module of its own, and list it below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config.learning_sections import WARM_START_TILES
from wsi_ips.registry import Entry, Registry

if TYPE_CHECKING:
    from wsi_ips.training.settings import LabelledSlide, Settings


class Start(Protocol):
    """The first epochs of a training, whose steps learn from given tiles instead of scanning for the best."""

    epochs: int  # of the start phase

    def steps(self, slides: int) -> int:
        """Return the number of steps of an epoch over a number of slides."""
        ...

    def tile_count(self, slide: LabelledSlide) -> int:
        """Return the number of tiles of a slide to learn from."""
        ...

    def tiles(self, slide: LabelledSlide, rng: np.random.Generator) -> NDArray[np.integer]:
        """Return the ids of the tiles to learn from, ascending; ``rng`` differs for each epoch and slide."""
        ...


class RandomTiles:
    """A few random tiles of many slides: differences between slides (their stain) average out."""

    def __init__(self, settings: Settings) -> None:
        self.epochs = settings.section.warm_start_epochs
        batch = settings.section.batch_slides
        # A step learns from about as many tiles as one with selection, of more slides.
        self._batch_slides = max(batch, batch * settings.memory_size // WARM_START_TILES)

    def steps(self, slides: int) -> int:
        """Return the number of steps of an epoch."""
        return math.ceil(slides / self._batch_slides)

    def tile_count(self, slide: LabelledSlide) -> int:
        """Return the number of tiles to learn from."""
        return min(WARM_START_TILES, len(slide.tiles.index))

    def tiles(self, slide: LabelledSlide, rng: np.random.Generator) -> NDArray[np.integer]:
        """Return the ids of random tiles."""
        return np.sort(rng.permutation(len(slide.tiles.index))[:WARM_START_TILES])


def no_start(_: Settings) -> Start | None:
    """Return None: tiles are selected from the first epoch on."""
    return None


@dataclass(frozen=True)
class StartEntry(Entry):
    """One training start."""

    has_epochs: bool = True  # whether it has epochs of its own (``training.warm_start_epochs``)


_EPOCHS = ("training.warm_start_epochs",)
_RANDOM_TILES = f"{__name__}:RandomTiles"

STARTS = Registry(
    "training start",
    [
        StartEntry("auto", _RANDOM_TILES, "the start that fits most cohorts, at present `random-tiles`", keys=_EPOCHS),
        StartEntry(
            "random-tiles",
            _RANDOM_TILES,
            "a few random tiles of many slides; no scan, so an epoch takes seconds, and selection then starts from "
            "meaningful attention",
            keys=_EPOCHS,
        ),
        StartEntry(
            "self-supervised",
            f"{__name__}:no_start",
            "the encoder first learns from the training tiles without labels; where no published weights fit",
            has_epochs=False,
        ),
        StartEntry("none", f"{__name__}:no_start", "tiles are selected from the first epoch on", has_epochs=False),
    ],
    group="wsi_ips.starts",
)
