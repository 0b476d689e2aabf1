"""How long a training takes where the recipe leaves it open; that depends on the number of slides."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from wsi_ips.config.learning_sections import TrainingSection
from wsi_ips.registry import registry

WARM_START_TILES = 4
"""Random tiles of a slide in an epoch of the start phase."""
TILES_SEEN, LEAST_WARM_START = 16_000, 10
"""Tiles that a start phase shows, and its epochs at least (DECISIONS D83)."""
EPOCHS_WITH_SELECTION = 20


class PlannedTraining(TrainingSection):
    """The section ``training`` for a number of slides: nothing is left open."""

    epochs: Annotated[int, Field(ge=1, description="passes over the training slides")]
    warm_start_epochs: Annotated[int, Field(ge=0, description="the first of them, without selection")]


def planned(section: TrainingSection, slides: int) -> PlannedTraining:
    """Return the section with what the recipe leaves open filled in for a number of training slides."""
    epochs, warm_start = section.epochs, section.warm_start_epochs
    if not registry("starts")[section.start].has_epochs:
        warm_start = 0
    elif warm_start is None:
        warm_start = max(LEAST_WARM_START, math.ceil(TILES_SEEN / (WARM_START_TILES * slides)))
        if epochs is not None:
            warm_start = min(warm_start, epochs * 2 // 3)
    if epochs is None:
        epochs = warm_start + EPOCHS_WITH_SELECTION
    return PlannedTraining(**section.model_dump() | {"epochs": epochs, "warm_start_epochs": warm_start})
