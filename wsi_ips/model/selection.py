"""One-pass selection: score all tiles of all slides, keep the M best of each.

The selection score of tile i is the mean over queries t and heads h of its softmax attention over the
**whole slide**, ``mean_th exp(s_ith - lse_th)``, with ``lse_th`` the log-sum-exp of all logits of the slide.
A logit does not depend on other tiles, so the logits of all N tiles (N·T·H floats; 8 MB at 250 000 x 8)
give the exact top-M at the end, whatever the order of tiles, the size of chunks or the company of other
slides. This differs from the published greedy rule (Bergner et al., 2023, algorithm 1), which takes the softmax
inside each buffer and chunk and is therefore no top-M of any fixed score once H > 1. As all logits are kept, that
rule too can be applied to them at the end (``rules.paper``), with the same result as in the published loop.

During the scan a buffer of M patches holds the pixels of the best by the log-sum-exp so far. With H > 1
the final log-sum-exp can favour a tile that the buffer let go; its pixels are read again by tile number.

Shapes: N tiles of a slide, n tiles of a chunk, M kept at most, T queries, H heads, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ScoresError
from wsi_ips.model.rules import Doubles, Floats, Rule, TileIds, best_first, exact, log_sum_exp, selection_score

Pixels = NDArray[Any]
"""Patches, uint8 (n, h, w, 3), or stored features, float16 (n, F), in their place."""


class Chunk(Protocol):
    """Patches of one or several slides (``tiles.stream.PatchChunk`` is one)."""

    @property
    def pixels(self) -> Pixels:
        """Shape (n, h, w, 3), or (n, F)."""
        ...

    @property
    def slot(self) -> NDArray[np.integer]:
        """Position of each patch's slide in the batch, shape (n,)."""
        ...

    @property
    def tile(self) -> NDArray[np.integer]:
        """Tile id of each patch within its slide, shape (n,)."""
        ...


@dataclass(frozen=True)
class SlideToScan:
    """One slide of a batch.

    Attributes
    ----------
    slide_id
        For messages.
    tiles
        Number of tiles in its index; tile ids are below it.
    """

    slide_id: str
    tiles: int


@dataclass(frozen=True)
class Selection:
    """The kept tiles of one slide, best first, and the scores of all that were scanned.

    Attributes
    ----------
    tiles
        Kept tile ids, shape (K,) with K = min(M, tiles scanned); best first by the rule, equal scores in order of id.
    pixels
        Their patches, uint8, shape (K, h, w, 3), or features, float16, shape (K, F).
    score
        Their selection scores over the whole slide, shape (K,).
    scanned
        Ids of all scanned tiles, ascending, shape (S,).
    logits
        Attention logits of the scanned tiles, float32, shape (S, T, H).
    probability
        Single-tile class probabilities, float32, shape (S, C), or None.
    """

    tiles: TileIds
    pixels: Pixels
    score: Doubles
    scanned: TileIds
    logits: Floats
    probability: Floats | None


AnyChunk = TypeVar("AnyChunk", bound=Chunk)
ScoreChunk = Callable[[AnyChunk], tuple[Floats, Floats | None]]
"""Chunk of n patches -> (logits (n, T, H), probability (n, C) or None)."""

ReadAgain = Callable[[int, TileIds], Pixels]
"""(slot, tile ids (k,)) -> pixels (k, h, w, 3)."""


def scan(
    chunks: Iterable[AnyChunk],
    slides: Sequence[SlideToScan],
    *,
    score_chunk: ScoreChunk[AnyChunk],
    memory_size: int,
    read_again: ReadAgain,
    rule: Rule = exact,
) -> list[Selection]:
    """Score every tile of a stream and keep the best of each slide.

    Memory is that of one chunk, M patches per slide, and N·T·H + N·C floats per slide.

    Parameters
    ----------
    chunks
        The stream; any order, any mixture of slides, each tile at most once.
    slides
        The batch; ``chunk.slot`` counts in it.
    score_chunk
        Encoder and scorer.
    memory_size
        Tiles kept per slide (M).
    read_again
        Reads patches that left the buffer and are winners in the end.
    rule
        Chooses the winners from the logits of all tiles.

    Raises
    ------
    ScoresError
        A logit is not finite, or a slide yielded no tile.
    """
    memories = [_Memory(slide, memory_size) for slide in slides]
    for chunk in chunks:
        logits, probability = score_chunk(chunk)
        for slot in np.unique(chunk.slot):
            here = np.flatnonzero(chunk.slot == slot)
            memories[slot].add(
                np.asarray(chunk.tile[here], np.int64),
                chunk.pixels,
                here,
                logits[here],
                None if probability is None else probability[here],
            )
    # Each buffer is let go when its winners have been gathered: not all pixels are in memory twice.
    return [memories.pop(0).finish(slot, rule, read_again) for slot in range(len(slides))]


def merge(
    shards: Sequence[Selection],
    *,
    memory_size: int,
    read_again: Callable[[TileIds], Pixels],
    rule: Rule = exact,
) -> Selection:
    """Join selections of disjoint parts of one slide into the selection of the whole.

    Equal to one scan of all parts, for the logits of all scanned tiles are in the parts. The parts must have been
    scanned by the same network.

    Parameters
    ----------
    shards
        At least one; no tile in two of them.
    memory_size
        Tiles kept (M).
    read_again
        Reads patches that win over the whole slide, but did not in their part (possible where H·T > 1).
    rule
        Chooses the winners from the logits of all tiles.

    Raises
    ------
    ScoresError
        A tile is in two parts.
    """
    scanned = np.concatenate([shard.scanned for shard in shards])
    order = np.argsort(scanned)
    if len(np.unique(scanned)) < len(scanned):
        raise ScoresError("a tile was scanned in two parts of its slide; split the tiles so that each is in one part")
    probabilities = [shard.probability for shard in shards if shard.probability is not None]
    return _select(
        scanned[order],
        np.concatenate([shard.logits for shard in shards])[order],
        np.concatenate(probabilities)[order] if len(probabilities) == len(shards) else None,
        memory_size=memory_size,
        rule=rule,
        held={int(t): p for shard in shards for t, p in zip(shard.tiles, shard.pixels, strict=True)},
        read_again=read_again,
    )


def _select(
    scanned: TileIds,
    logits: Floats,
    probability: Floats | None,
    *,
    memory_size: int,
    rule: Rule,
    held: Mapping[int, Pixels],
    read_again: Callable[[TileIds], Pixels],
) -> Selection:
    """Apply a rule to the logits of all scanned tiles and gather the winners' pixels."""
    best = rule(logits, memory_size)
    winners = scanned[best]
    lost = [k for k, tile in enumerate(winners) if int(tile) not in held]
    again = iter(read_again(winners[lost]) if lost else ())
    pixels = np.stack([held[int(tile)] if int(tile) in held else next(again) for tile in winners])
    return Selection(winners, pixels, selection_score(logits)[best], scanned, logits, probability)


class _Memory:
    """Logits of all tiles of one slide so far, and the pixels of the best M."""

    def __init__(self, slide: SlideToScan, size: int) -> None:
        self.slide, self.size = slide, size
        self.seen = np.zeros(slide.tiles, bool)
        self.logits: Floats | None = None  # (N, T, H), allocated when T and H are known
        self.probability: Floats | None = None  # (N, C)
        self.total: Doubles | None = None  # running log-sum-exp, (T, H)
        self.kept: TileIds = np.empty(0, np.int64)
        self.pixels: Pixels | None = None  # (M, h, w, 3); row r holds tile kept[r]

    def add(
        self,
        tiles: TileIds,
        pixels: Pixels,
        rows: NDArray[np.intp],
        logits: Floats,
        probability: Floats | None,
    ) -> None:
        """Take in tiles whose patches are ``pixels[rows]``."""
        if not np.isfinite(logits).all():
            raise ScoresError(
                f"slide {self.slide.slide_id}: attention logits are not finite; the model has diverged: train "
                "again with a lower `training.learning_rate`"
            )
        self._store(tiles, logits, probability)
        chunk_total = log_sum_exp(logits.astype(np.float64))  # (T, H)
        self.total = chunk_total if self.total is None else np.logaddexp(self.total, chunk_total)
        if self.pixels is None:
            self.pixels = np.empty((min(self.size, self.slide.tiles), *pixels.shape[1:]), pixels.dtype)
        candidates = np.concatenate([self.kept, tiles])
        assert self.logits is not None
        best = best_first(selection_score(self.logits[candidates], self.total), candidates, self.size)
        stay = np.zeros(len(self.kept), bool)
        stay[best[best < len(self.kept)]] = True
        entering = best[best >= len(self.kept)] - len(self.kept)
        free = np.concatenate([np.flatnonzero(~stay), np.arange(len(self.kept), len(self.pixels))])
        self.kept = np.concatenate([self.kept, np.empty(len(best) - len(self.kept), np.int64)])
        places = free[: len(entering)]
        self.kept[places] = tiles[entering]
        for place, source in zip(places, rows[entering], strict=True):
            self.pixels[place] = pixels[source]

    def finish(self, slot: int, rule: Rule, read_again: ReadAgain) -> Selection:
        """Choose among everything seen."""
        if self.logits is None or self.pixels is None:
            raise ScoresError(f"slide {self.slide.slide_id}: no tile was scanned; leave empty slides out")
        held = {int(tile): self.pixels[row] for row, tile in enumerate(self.kept)}
        scanned = np.flatnonzero(self.seen).astype(np.int64)
        return _select(
            scanned,
            self.logits[scanned],
            None if self.probability is None else self.probability[scanned],
            memory_size=self.size,
            rule=rule,
            held=held,
            read_again=partial(read_again, slot),
        )

    def _store(self, tiles: TileIds, logits: Floats, probability: Floats | None) -> None:
        if self.logits is None:
            self.logits = np.empty((self.slide.tiles, *logits.shape[1:]), np.float32)
        if probability is not None and self.probability is None:
            self.probability = np.empty((self.slide.tiles, probability.shape[1]), np.float32)
        self.seen[tiles] = True
        self.logits[tiles] = logits
        if probability is not None and self.probability is not None:
            self.probability[tiles] = probability
