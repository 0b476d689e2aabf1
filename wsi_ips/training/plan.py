"""Which process does what of a step. Pure: every process makes the same plan without a word to the others.

Which slides a step learns from (:mod:`wsi_ips.training.schedule`) does not depend on the number of processes, so all
have the same number of steps, and a training goes on with another number of them from the next step of the same plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

UNEVEN = 1.1
"""Slides stay whole where the busiest process has at most so many times the mean; else some are cut."""


@dataclass(frozen=True)
class Piece:
    """Tiles ``start`` to ``stop`` (half-open, counted among those to scan) of one slide of a step."""

    slide: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Deal:
    """Who does what of one step.

    Attributes
    ----------
    pieces
        What each process scans; it may be nothing.
    owners
        Of each slide, the process that learns from it; one of those that scan it.
    """

    pieces: tuple[tuple[Piece, ...], ...]
    owners: tuple[int, ...]

    def owned(self, rank: int) -> list[int]:
        """Slides that a process learns from, ascending."""
        return [slide for slide, owner in enumerate(self.owners) if owner == rank]

    @property
    def shared(self) -> list[int]:
        """Slides that several processes scan, ascending."""
        holders = Counter(piece.slide for some in self.pieces for piece in some)
        return [slide for slide in range(len(self.owners)) if holders[slide] > 1]


def deal(tiles: Sequence[int], ranks: int, *, whole: bool = False) -> Deal:
    """Give the slides of a step to processes so that all have about as many tiles to scan.

    Whole slides, the largest first, each to the process with the least so far. Where that leaves one with more than
    :data:`UNEVEN` times the mean (a step with fewer slides than processes, a very large slide), the slides are laid
    one after the other and cut into equal shares instead (McNaughton's rule, 1959): every process has the mean, and at
    most ``ranks - 1`` slides are cut.

    Parameters
    ----------
    tiles
        Tiles to scan of each slide, at least 1.
    ranks
        Number of processes.
    whole
        Never cut a slide.
    """
    pieces = _whole_slides(tiles, ranks)
    busiest = max(sum(map(len, some)) for some in pieces)
    if not whole and busiest > UNEVEN * sum(tiles) / ranks:
        pieces = _equal_shares(tiles, ranks)
    return Deal(tuple(map(tuple, pieces)), _owners(pieces, len(tiles)))


def _whole_slides(tiles: Sequence[int], ranks: int) -> list[list[Piece]]:
    pieces: list[list[Piece]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for slide in sorted(range(len(tiles)), key=lambda s: (-tiles[s], s)):
        rank = load.index(min(load))
        pieces[rank].append(Piece(slide, 0, tiles[slide]))
        load[rank] += tiles[slide]
    return [sorted(some, key=lambda piece: piece.slide) for some in pieces]


def _equal_shares(tiles: Sequence[int], ranks: int) -> list[list[Piece]]:
    ends = np.cumsum([0, *tiles])
    cuts = [round(ends[-1] * rank / ranks) for rank in range(ranks + 1)]
    pieces: list[list[Piece]] = []
    for first, last in pairwise(cuts):
        bounds = [(max(first, a), min(last, b), a) for a, b in pairwise(ends)]
        pieces.append([Piece(s, int(a - at), int(b - at)) for s, (a, b, at) in enumerate(bounds) if a < b])
    return pieces


def _owners(pieces: Sequence[Sequence[Piece]], slides: int) -> tuple[int, ...]:
    """Slides are learned by whoever scans them; one that several scan by the one with the fewest to learn so far."""
    holders: list[list[int]] = [[] for _ in range(slides)]
    for rank, some in enumerate(pieces):
        for piece in some:
            holders[piece.slide].append(rank)
    owned = [0] * len(pieces)
    owners = [-1] * slides
    for slide in sorted(range(slides), key=lambda s: (len(holders[s]), s)):
        owners[slide] = min(holders[slide], key=lambda rank: (owned[rank], rank))
        owned[owners[slide]] += 1
    return tuple(owners)
