"""Registry of training starts: what a network learns from before its attention is good enough to select tiles.

A start has up to three parts. Before the training loop, the encoder learns from tiles without labels
(``trains_encoder``, :mod:`wsi_ips.pipeline.encoder_stage`), and pooling and heads learn on stored features of all tiles
(``on_features``, :mod:`wsi_ips.pipeline.start_on_features`). The first epochs of the loop (``in_epochs``) learn from
given tiles: an entry's implementation takes :class:`~wsi_ips.training.settings.Settings` and returns a :class:`Start`,
or None where the loop selects from its first epoch on. To add one, write it here or in a module of its own, and list it
below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import AugmentSection, ModelSection, PlannedTraining, Recipe, TrainingSection
from wsi_ips.config.learning_sections import START_SLIDES, START_TILES
from wsi_ips.registry import Entry, Registry

if TYPE_CHECKING:
    from wsi_ips.training.settings import LabelledSlide, Settings


class Start(Protocol):
    """The first epochs of a training, whose steps learn from given tiles instead of scanning for the best."""

    epochs: int  # of the start phase
    known_only: bool  # whether only tiles with a truth of their own are taught alone, all evenly

    def steps(self, slides: int) -> int:
        """Return the number of steps of an epoch over a number of slides."""
        ...

    def visits(self, train: Sequence[LabelledSlide], epoch: int) -> Sequence[LabelledSlide] | None:
        """Return the slides of an epoch in their order, as many as given; None where they come as in other epochs."""
        ...

    def tile_count(self, slide: LabelledSlide) -> int:
        """Return the number of tiles of a slide to learn from."""
        ...

    def tiles(self, slide: LabelledSlide, rng: np.random.Generator) -> NDArray[np.integer]:
        """Return the ids of the tiles to learn from, ascending; ``rng`` differs for each epoch and slide."""
        ...


class RandomTiles:
    """A few random tiles of many slides: differences between slides (their stain) average out.

    Each tile is labelled with the label of its slide, so this fails where a lesion is a small part of the tissue. A
    step has as many tiles whatever the tiles kept per slide and the slides of a later step: with more, there would be
    fewer steps in the same number of tiles, and fewer steps learn less.
    """

    known_only = False

    def __init__(self, settings: Settings) -> None:
        self.epochs = settings.section.start_epochs

    def steps(self, slides: int) -> int:
        """Return the number of steps of an epoch."""
        return math.ceil(slides / START_SLIDES)

    def visits(self, _train: Sequence[LabelledSlide], _epoch: int) -> None:
        """Return None: the slides come as in other epochs."""

    def tile_count(self, slide: LabelledSlide) -> int:
        """Return the number of tiles to learn from."""
        return min(START_TILES, len(slide.tiles.index))

    def tiles(self, slide: LabelledSlide, rng: np.random.Generator) -> NDArray[np.integer]:
        """Return the ids of random tiles."""
        return np.sort(rng.permutation(len(slide.tiles.index))[:START_TILES])


def no_start(_: Settings) -> Start | None:
    """Return None: tiles are selected from the first epoch on."""
    return None


@dataclass(frozen=True)
class StartEntry(Entry):
    """One training start."""

    steps: int = 0  # optimiser steps where the recipe gives none (``training.start_steps``)
    epochs: int = 20  # with selection, where the recipe gives none (``training.epochs``)
    in_epochs: bool = False  # whether its steps are the first epochs of the training loop
    trains_encoder: bool = False  # whether the encoder learns from the tiles without labels before all else
    on_features: bool = False  # whether pooling and heads first learn on features of all tiles


LEAST_OUTLINED = 4  # training slides with outlines for which `auto` starts on them
_RANDOM_TILES, _NO_START = f"{__name__}:RandomTiles", f"{__name__}:no_start"
_STEPS = ("training.start_steps",)

STARTS = Registry(
    "training start",
    [
        StartEntry(
            "auto",
            _RANDOM_TILES,
            "`none` where the recipe continues a trained model, `features` where the encoder has weights, `outlines` "
            "where training slides have some, else `random-tiles`",
            keys=_STEPS,
            steps=250,
            in_epochs=True,
        ),
        StartEntry(
            "features",
            _NO_START,
            "the encoder as it is embeds all tiles once; pooling and heads learn on all of them, and training goes on "
            "end to end from their attention; finds small lesions",
            keys=(*_STEPS, "training.start_views"),
            steps=400,
            epochs=6,
            on_features=True,
        ),
        StartEntry(
            "random-tiles",
            _RANDOM_TILES,
            "a few random tiles of many slides, without a scan; for lesions that cover a tenth of the tissue or more",
            keys=_STEPS,
            steps=250,
            in_epochs=True,
        ),
        StartEntry(
            "outlines",
            "wsi_ips.training.known_tiles:KnownTiles",
            "tiles whose truth is known from outlines (column `annotation` of the manifest) and from slides without a "
            "finding, as many of each; a few outlined slides will do",
            keys=_STEPS,
            steps=250,
            in_epochs=True,
        ),
        StartEntry(
            "self-supervised",
            _NO_START,
            "the encoder learns from the training slides' own tiles without labels, then as `features`; for cohorts "
            "that no published weights fit",
            keys=(*_STEPS, "training.start_views"),
            steps=1000,
            epochs=6,
            trains_encoder=True,
            on_features=True,
        ),
        StartEntry("none", _NO_START, "tiles are selected from the first epoch on, as published"),
    ],
    group="wsi_ips.starts",
)


class StartChoice(NamedTuple):
    """The start of a training, and why."""

    name: str
    why: str


def choose_start(section: TrainingSection, model: ModelSection, outlined: int) -> StartChoice:
    """Return the start that a recipe names; for ``auto`` the one that fits its model and its outlined slides."""
    if section.start != "auto":
        return StartChoice(section.start, "`training.start` says so")
    if model.start is not None:
        return StartChoice("none", "`model.start` continues a trained model")
    if model.pretrained or model.weights is not None:
        return StartChoice("features", "the encoder has weights, so its features mean something before training")
    if model.input == "features":
        return StartChoice("features", "the features are stored, so learning from all tiles is quick")
    if outlined >= LEAST_OUTLINED and section.known_tiles:
        return StartChoice("outlines", f"{outlined} training slides have outlines")
    return StartChoice(
        "random-tiles",
        "the encoder has no weights; lesions that cover less than about a tenth of the tissue will not be found: set "
        "`model.pretrained` or `model.weights`, or `training.start: self-supervised`, or outline the lesions of some "
        "training slides",
    )


def started(section: TrainingSection, choice: StartChoice) -> TrainingSection:
    """Return the section with the chosen start; `none` has no steps, whatever the recipe says for `auto`."""
    steps = None if choice.name == "none" else section.start_steps
    return section.model_copy(update={"start": choice.name, "start_steps": steps})


def feature_views(recipe: Recipe) -> int:
    """Return how often a start on features embeds a training tile: once where nothing would differ, or it is stored."""
    changes = any(recipe.training.augment.model_dump().values()) and recipe.model.input == "pixels"
    return recipe.training.start_views if changes else 1


def head_section(section: TrainingSection, slides: int) -> PlannedTraining:
    """Return the settings of the start for a number of training slides: all tiles of a slide, nothing random."""
    given = section.start_steps if section.start == "features" else None  # else those of the encoder's own training
    steps = STARTS["features"].steps if given is None else given
    epochs = max(1, math.ceil(steps / math.ceil(slides / section.batch_slides)))
    changed = {
        "start": "none",
        "start_steps": None,
        "epochs": epochs,
        "start_epochs": 0,
        "exploration": 0.0,
        "tile_dropout": 0.0,
        "augment": AugmentSection.nothing(),  # the stored features of each view are
        "weight_average": 0.0,
        "patience": None,
    }
    return PlannedTraining(**section.model_dump() | changed)
