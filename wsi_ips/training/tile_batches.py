"""Batches of tiles of many slides, in an order that follows from a seed, for training without labels.

The tiles come in rounds. In each round every slide gives the same number of tiles, so a slide of 50 000 tiles weighs as
much as one of 500; the order of the slides is drawn anew. A slide gives all of its tiles before it repeats one. The
rounds follow each other in one endless row, which is cut into groups of equal size.

A group is known from its number alone. So a training resumes at any group without reading what came before, and
several processes each read only their own groups. Reading needs no shuffle buffer: the stream reads the tiles of a
group from all its slides, and memory is that of a few groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import TrainingError
from wsi_ips.tiles.stream import SlideTiles

SLIDE_ORDER, TILE_ORDER = 1, 2  # streams of random numbers


class TileBatches:
    """Groups of ``group_tiles`` tiles each, numbered from 0; of a slide at most ``slide_tiles`` tiles in a row."""

    def __init__(self, slides: Sequence[SlideTiles], *, group_tiles: int, slide_tiles: int, seed: int) -> None:
        self._slides = [slide for slide in slides if len(slide.wanted)]
        counts = [len(slide.wanted) for slide in self._slides]
        if sum(counts) < group_tiles:
            raise TrainingError(
                f"{sum(counts)} tiles in {len(self._slides)} slides are fewer than the {group_tiles} that one step of "
                "self-supervision needs; add slides (they need no label), or choose another `training.start`"
            )
        self.slide_ids = [slide.slide_id for slide in self._slides]  # by slot
        self._group_tiles, self._seed = group_tiles, abs(seed)
        self._given = [min(slide_tiles, count) for count in counts]  # tiles that each slide gives in a round

    def requests(self, group: int) -> Iterator[SlideTiles]:
        """Yield what to read for a group, ``group_tiles`` tiles in all; a slide's slot is its place in `slide_ids`."""
        per_round = sum(self._given)
        left = self._group_tiles
        number, skip = divmod(group * self._group_tiles, per_round)
        while left:
            for slide in self._order(number):
                start, stop = min(skip, self._given[slide]), min(skip + left, self._given[slide])
                skip -= start
                if start < stop:
                    left -= stop - start
                    yield self._slides[slide].at_slot(slide).only(self._tiles(slide, number)[start:stop])
            number += 1

    def _order(self, number: int) -> list[int]:
        """Return the slides of a round in their order."""
        rng = np.random.default_rng([self._seed, SLIDE_ORDER, number])
        return [int(slide) for slide in rng.permutation(len(self._slides))]

    def _tiles(self, slide: int, number: int) -> NDArray[np.int32]:
        """Return the tiles that a slide gives in a round, ascending: near tiles are read together."""
        wanted, given = self._slides[slide].wanted, self._given[slide]
        # A few tiles are left over in each turn, other ones each time.
        turn, part = divmod(number, len(wanted) // given)
        rng = np.random.default_rng([self._seed, TILE_ORDER, slide, turn])
        drawn = rng.permutation(len(wanted))[part * given : (part + 1) * given]
        return np.sort(wanted[drawn])
