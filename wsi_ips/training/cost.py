"""Cost of a training before it begins: optimiser steps, tiles, and hours on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from wsi_ips.config import Recipe, planned
from wsi_ips.config.learning_sections import START_SLIDES, START_TILES
from wsi_ips.model.encoder_families import build_encoder
from wsi_ips.scanning import choose_device
from wsi_ips.training.model_building import plan_encoder
from wsi_ips.training.self_supervision import TILES_PER_STEP
from wsi_ips.training.starts import STARTS, StartChoice, choose_start, feature_views, head_section, started

GRADIENT_COST = 3  # forward passes that learning from a tile costs: forward, and a backward pass of two
TIMED_S, TIMED_PATCHES = 2.0, 32


@dataclass(frozen=True)
class TrainingCost:
    """What a training will do."""

    start: StartChoice
    start_steps: int  # optimiser steps of the start, those of self-supervision included
    steps: int  # optimiser steps with selection
    embedded: int  # tiles that the encoder embeds once for the start
    scanned: int  # tiles scored for selection and validation, over all epochs
    learned: int  # tiles that the encoder learns from, over all epochs
    device: str
    tiles_per_s: float  # that the encoder embeds there

    @property
    def hours(self) -> float:
        """Hours that the encoder takes."""
        return (self.embedded + self.scanned + GRADIENT_COST * self.learned) / self.tiles_per_s / 3600


def training_cost(recipe: Recipe, train: Sequence[int], val: Sequence[int], outlined: int = 0) -> TrainingCost:
    """Return the cost of a training, given the tiles of each training and validation slide, and the outlined slides.

    The speed of the encoder is measured for two seconds.
    """
    choice, memory_size = choose_start(recipe.training, recipe.model, outlined), recipe.model.memory_size
    section, entry = started(recipe.training, choice), STARTS[choice.name]
    training = planned(section, len(train))
    selecting = training.epochs - training.start_epochs
    start_steps, embedded, learned = 0, 0, 0
    if entry.trains_encoder:
        start_steps = entry.steps if section.start_steps is None else section.start_steps
        learned = start_steps * TILES_PER_STEP
    if entry.on_features:
        start_steps += head_section(section, len(train)).epochs * math.ceil(len(train) / section.batch_slides)
        embedded = sum(train) * feature_views(recipe) + sum(val)
    if training.start_epochs:
        tiles = [min(START_TILES, count) for count in train]
        start_steps = training.start_epochs * math.ceil(len(train) / START_SLIDES)
        learned = training.start_epochs * sum(tiles)
    scanned = selecting * (round(sum(train) * (1 - section.tile_dropout)) + sum(val))
    learned += selecting * sum(min(memory_size, count) for count in train)
    steps = selecting * math.ceil(len(train) / section.batch_slides)
    if recipe.model.input == "features":
        scanned = learned = 0  # the encoder is not needed again
    return TrainingCost(choice, start_steps, steps, embedded, scanned, learned, *_encoder_speed(recipe))


def _encoder_speed(recipe: Recipe) -> tuple[str, float]:
    """Return the device of a recipe and the tiles that its encoder embeds there in a second, measured for two."""
    plan, side = plan_encoder(recipe.model), recipe.tiles.patch_px
    device = choose_device(recipe.compute.device)
    encoder = build_encoder(replace(plan.spec, projector=0)).eval().to(device)
    patches = torch.rand(TIMED_PATCHES, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    quickest, began = math.inf, time.monotonic()
    with torch.inference_mode():
        encoder(patches)
        while time.monotonic() - began < TIMED_S or quickest == math.inf:
            start = time.monotonic()
            float(encoder(patches).sum())  # waits for the device
            quickest = min(quickest, time.monotonic() - start)  # other programs only make it slower
    return device.type, len(patches) / quickest
