"""Tiles of known truth: the start `outlines`, and what goes on after it.

The start draws balanced tiles of known truth in place of random ones. Everything that tiles can show, background
included, gets the same number of visits and of tiles, whatever its share of the tissue; within it every slide that has
some, and within a slide its tiles. A visit to a lesion also takes tiles beside it: the pooling sees both in one slide,
and its attention learns to tell them apart. A visit to background takes no tile of a lesion, so its label is "nothing",
whatever the slide is labelled.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config.learning_sections import START_SLIDES
from wsi_ips.errors import TrainingError
from wsi_ips.labels import Target, Task
from wsi_ips.training.settings import LabelledSlide, Settings
from wsi_ips.training.tile_truth import Kind, TileTruth, kinds_of

LESION_TILES, OTHER_TILES = 4, 2  # of a visit to a lesion: inside it, and beside it; to background: only the latter
VISITS = 4  # stream of random numbers of an epoch


class Replaced(NamedTuple):
    """Kept tiles, some of which are replaced."""

    stay: NDArray[np.int64]  # rows of the kept tiles that stay, ascending
    drawn: NDArray[np.int64]  # ids of the tiles in place of the others, ascending


class KnownTiles:
    """Tiles with known truth, balanced over what they show, then over slides, then over tiles."""

    known_only = True  # each tile is taught its own truth, and a tile without one nothing

    def __init__(self, settings: Settings) -> None:
        self.epochs, self._seed = settings.section.start_epochs, abs(settings.seed)

    def steps(self, slides: int) -> int:
        """Return the number of steps of an epoch."""
        return math.ceil(slides / START_SLIDES)

    def visits(self, train: Sequence[LabelledSlide], epoch: int) -> list[LabelledSlide]:
        """Return as many visits as there are slides, of each kind in turn.

        Raises a :class:`TrainingError` where outlines and labels tell nothing apart.
        """
        rng = np.random.default_rng([self._seed, epoch, VISITS])
        turns = {kind: _turns(slides, rng) for kind, slides in _slides_by_kind(train).items()}
        kinds = [list(turns)[number] for number in rng.permutation(len(turns))]
        views: Counter[int] = Counter()
        visits = []
        for number in range(len(train)):
            kind = kinds[number % len(kinds)]
            slide = next(turns[kind])
            targets = _targets_of(train[slide], kind)
            visits.append(replace(train[slide].visited(epoch, views[slide]), targets=targets, draws=kind))
            views[slide] += 1
        return visits

    def tile_count(self, slide: LabelledSlide) -> int:
        """Return the number of tiles to learn from."""
        truth, kind = _drawn(slide)
        if kind.shown is None:
            return min(OTHER_TILES, truth.candidates(kind))
        return min(LESION_TILES, truth.candidates(kind)) + min(OTHER_TILES, truth.count - len(truth.tiles))

    def tiles(self, slide: LabelledSlide, rng: np.random.Generator) -> NDArray[np.integer]:
        """Return the ids of known tiles."""
        truth, kind = _drawn(slide)
        if kind.shown is None:
            return np.sort(truth.draw(kind, OTHER_TILES, rng))
        lesion = truth.draw(kind, LESION_TILES, rng)
        return np.sort(np.concatenate([lesion, truth.draw_outside(OTHER_TILES, rng)]))


def with_missed(truth: TileTruth, kept: NDArray[np.int64], share: float, rng: np.random.Generator) -> Replaced:
    """Add tiles inside outlines to a slide's kept tiles, until they make up a share of them or none is left.

    The last of the kept tiles that lie outside make room, so the number of tiles stays the same.
    """
    inside = truth.is_lesion(kept)  # (K,)
    wanted = max(0, round(share * len(kept)) - int(inside.sum()))
    kinds = [kind for kind in kinds_of(truth.tasks) if kind.shown is not None and truth.candidates(kind)]
    drawn = np.empty(0, np.int64)
    for number, kind in enumerate(kinds):
        count = -(-(wanted - len(drawn)) // (len(kinds) - number))
        new = truth.draw(kind, count + len(kept) + len(drawn), rng)
        drawn = np.concatenate([drawn, new[~np.isin(new, kept) & ~np.isin(new, drawn)][:count]])
    leaving = np.flatnonzero(~inside)[::-1][: len(drawn)]
    return Replaced(np.setdiff1d(np.arange(len(kept)), leaving), np.sort(drawn))


def _drawn(slide: LabelledSlide) -> tuple[TileTruth, Kind]:
    assert slide.truth is not None
    assert slide.draws is not None
    return slide.truth, slide.draws


def _slides_by_kind(train: Sequence[LabelledSlide]) -> dict[Kind, list[int]]:
    """Return the slides that have tiles of each kind, of the tasks of which some tile is known to show a class."""
    known = [(number, slide.truth) for number, slide in enumerate(train) if slide.truth is not None]
    tasks = known[0][1].tasks if known else ()
    by_kind = {kind: [n for n, truth in known if truth.candidates(kind)] for kind in kinds_of(tasks)}
    outlined = {kind.task for kind, slides in by_kind.items() if slides and kind.shown is not None}
    found = {kind: slides for kind, slides in by_kind.items() if slides and kind.task in outlined}
    if not found:
        raise TrainingError(
            f"`training.start: outlines` needs outlined lesions on training slides, and none of the {len(train)} has "
            "one in its tiles: fill in column `annotation` of the manifest for some with split `train`, or choose "
            "another `training.start`"
        )
    if len(found) == 1:
        (kind,) = found
        raise TrainingError(
            f"`training.start: outlines`: the outlines show only {_name(tasks, kind)}, and no tile of the "
            f"{len(train)} training slides is known to be anything else; add slides without a finding, or slides "
            "whose outlines are complete (column `outlines` of the manifest), or choose another `training.start`"
        )
    return found


def _name(tasks: Sequence[Task], kind: Kind) -> str:
    task = tasks[kind.task]
    return f"`{task.classes[kind.shown or 0]}`"


def _turns(slides: Sequence[int], rng: np.random.Generator) -> Iterator[int]:
    """Yield slides without end, all of them before one comes again."""
    while True:
        yield from (slides[number] for number in rng.permutation(len(slides)))


def _targets_of(slide: LabelledSlide, kind: Kind) -> tuple[Target, ...]:
    """Return the labels of a visit: that of the tiles drawn in the task of their kind, else those of the slide."""
    truth, _ = _drawn(replace(slide, draws=kind))
    task = truth.tasks[kind.task]
    shown: Target = tuple(number == kind.shown for number in range(task.width))
    if task.kind == "single":
        shown = kind.shown or 0
    return tuple(shown if number == kind.task else target for number, target in enumerate(slide.targets))
