"""Exact selection in one pass: score all tiles of all slides, keep the M best of each.

The selection score of tile i is its attention in a softmax over the **whole slide**, averaged over queries t and heads
h: ``mean_th exp(s_ith - lse_th)``, where ``lse_th`` is the log-sum-exp of all logits of the slide. A logit ``s_ith``
does not depend on other tiles. So the scan stores the logits of all N tiles (N·T·H floats; 8 MB at 250 000 x 8) and
takes the exact top-M at the end. The order of tiles, the chunk size and the other slides of the batch change nothing.

The published rule (Bergner et al., 2023, algorithm 1) differs: it takes the softmax inside each buffer and chunk. With
H > 1 the result then depends on the chunks and is not the top-M of any fixed score.

Shapes: N tiles of a slide, S of them scanned, n tiles of a chunk, M kept at most, K = min(M, S), T queries, H heads,
C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ScoresError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
TileIds = NDArray[np.int64]
Pixels = NDArray[Any]  # patches, uint8 (n, h, w, 3), or stored features, float16 (n, F)


def log_sum_exp(logits: Doubles) -> Doubles:
    """Return the log-sum-exp over the first axis, shape (n, T, H) to (T, H); logits must be finite."""
    top = logits.max(axis=0)
    return np.asarray(top + np.log(np.exp(logits - top).sum(axis=0)))


def selection_score(logits: Floats, total: Doubles | None = None) -> Doubles:
    """Return the softmax attention of each tile, averaged over queries and heads, (n, T, H) to (n,).

    ``total`` is the log-sum-exp over the whole slide, (T, H); without it, that of ``logits``. The scores sum to 1 over
    the tiles that it covers.
    """
    wide = logits.astype(np.float64)
    total = log_sum_exp(wide) if total is None else total
    return np.asarray(np.exp(wide - total).mean(axis=(1, 2)))


def best_tiles(logits: Floats, memory_size: int) -> NDArray[np.intp]:
    """Return the positions of the M highest selection scores, best first; equal scores keep their order."""
    return _best_first(selection_score(logits), np.arange(len(logits)), memory_size)


def _best_first(score: Doubles, tiles: NDArray[np.integer], count: int) -> NDArray[np.intp]:
    """Return the positions of the highest scores, best first, equal scores by tile id."""
    return np.lexsort((tiles, -score))[:count]


class Chunk(Protocol):
    """Patches of one or several slides; ``tiles.stream.PatchChunk`` is one."""

    @property
    def pixels(self) -> Pixels:
        """Shape (n, h, w, 3), or (n, F)."""

    @property
    def slot(self) -> NDArray[np.integer]:
        """Position of each patch's slide in the batch, shape (n,)."""

    @property
    def tile(self) -> NDArray[np.integer]:
        """Tile id of each patch within its slide, shape (n,)."""


@dataclass(frozen=True)
class SlideToScan:
    """One slide of a batch."""

    slide_id: str  # for messages
    tiles: int  # number of tiles in its index; tile ids are below it


@dataclass(frozen=True)
class Scanned:
    """Scores of the scanned tiles of a slide."""

    scanned: TileIds  # tile ids, ascending, (S,)
    logits: Floats  # attention logits, float32, shape (S, T, H)
    probability: Floats | None  # single-tile class probabilities, float32, shape (S, C), or None


@dataclass(frozen=True)
class Selection(Scanned):
    """The kept tiles of one slide, best first, and the scores of all scanned ones."""

    tiles: TileIds  # kept tile ids, shape (K,); best first, equal scores in order of id
    pixels: Pixels  # their patches, uint8, shape (K, h, w, 3), or features, float16, shape (K, F)
    score: Doubles  # their selection scores over the whole slide, shape (K,)


AnyChunk = TypeVar("AnyChunk", bound=Chunk)
# Chunk of n patches -> (logits (n, T, H), probability (n, C) or None)
ScoreChunk = Callable[[AnyChunk], tuple[Floats, Floats | None]]

ReadAgain = Callable[[int, TileIds], Pixels]  # (slot, tile ids (k,)) -> pixels (k, h, w, 3)


def scan(
    chunks: Iterable[AnyChunk],
    slides: Sequence[SlideToScan],
    *,
    score_chunk: ScoreChunk[AnyChunk],
    memory_size: int,
    read_again: ReadAgain,
) -> list[Selection]:
    """Score every tile of a stream and keep the best of each slide.

    Memory holds one chunk, M patches per slide, and N·T·H + N·C floats per slide. Chunks may mix slides and come in any
    order; each tile occurs at most once. ``read_again`` reads the winners that are no longer in the buffer.

    Raises
    ------
    ScoresError
        A logit is not finite, or a slide yielded no tile.
    """
    memories = [_Memory(slide, memory_size) for slide in slides]
    for chunk in chunks:
        logits, probability = score_chunk(chunk)
        for slot in np.unique(chunk.slot):
            rows = np.flatnonzero(chunk.slot == slot)
            found = Scanned(
                np.asarray(chunk.tile[rows], np.int64), logits[rows], None if probability is None else probability[rows]
            )
            memories[slot].add(found, chunk.pixels, rows)
    # Each buffer is freed as soon as its winners are gathered, so that no pixels are in memory twice.
    return [memories.pop(0).finish(partial(read_again, slot)) for slot in range(len(slides))]


def merge(shards: Sequence[Selection], *, memory_size: int, read_again: Callable[[TileIds], Pixels]) -> Selection:
    """Join the selections of disjoint parts of one slide into the selection of the whole.

    The result equals one scan of all parts, because the parts hold the logits of all scanned tiles. One network must
    have scanned all parts. ``read_again`` reads patches that win in the whole slide but did not win in their part
    (possible where H·T > 1).
    """
    scanned = np.concatenate([shard.scanned for shard in shards])
    order = np.argsort(scanned)
    if len(np.unique(scanned)) < len(scanned):
        raise ScoresError("a tile was scanned in two parts of its slide; split the tiles so that each is in one part")
    probabilities = [shard.probability for shard in shards if shard.probability is not None]
    found = Scanned(
        scanned[order],
        np.concatenate([shard.logits for shard in shards])[order],
        np.concatenate(probabilities)[order] if len(probabilities) == len(shards) else None,
    )
    held = {int(t): p for shard in shards for t, p in zip(shard.tiles, shard.pixels, strict=True)}
    return _select(found, memory_size, held, read_again)


def _select(
    found: Scanned, memory_size: int, held: Mapping[int, Pixels], read_again: Callable[[TileIds], Pixels]
) -> Selection:
    """Choose the best of all scanned tiles and gather their pixels; those not in ``held`` are read again."""
    best = best_tiles(found.logits, memory_size)
    winners = found.scanned[best]
    lost = [k for k, tile in enumerate(winners) if int(tile) not in held]
    again = iter(read_again(winners[lost]) if lost else ())
    pixels = np.stack([held[int(tile)] if int(tile) in held else next(again) for tile in winners])
    score = selection_score(found.logits)[best]
    return Selection(found.scanned, found.logits, found.probability, winners, pixels, score)


class _Memory:
    """Logits of all tiles of one slide so far, and a buffer with the pixels of the best M.

    The buffer only saves reading: the winners follow from the stored logits alone. While the scan runs, the log-sum-exp
    of the whole slide is unknown, so the buffer is ranked by that of the tiles seen so far. With H·T = 1 this is the
    final order, since a softmax keeps the order of its logits. With more heads a later tile can raise the log-sum-exp
    of one head, which lowers the scores of tiles that rely on that head. A tile that left the buffer can then win in
    the end; its pixels are read again. This is rare, and the buffer never holds more than M patches.
    """

    def __init__(self, slide: SlideToScan, size: int) -> None:
        self.slide, self.size = slide, size
        self.seen = np.zeros(slide.tiles, bool)
        self.logits: Floats | None = None  # (N, T, H), allocated when T and H are known
        self.probability: Floats | None = None  # (N, C)
        self.total: Doubles | None = None  # log-sum-exp of the tiles seen so far, (T, H)
        self.kept: TileIds = np.empty(0, np.int64)
        self.pixels: Pixels | None = None  # (M, h, w, 3); row r holds tile kept[r], in no particular order

    def add(self, found: Scanned, pixels: Pixels, rows: NDArray[np.intp]) -> None:
        """Add scanned tiles whose patches are ``pixels[rows]``."""
        if not np.isfinite(found.logits).all():
            raise ScoresError(
                f"slide {self.slide.slide_id}: attention logits are not finite; the model has diverged: train "
                "again with a lower `training.learning_rate`"
            )
        self._store(found)
        chunk_total = log_sum_exp(found.logits.astype(np.float64))  # (T, H)
        self.total = chunk_total if self.total is None else np.logaddexp(self.total, chunk_total)
        if self.pixels is None:
            self.pixels = np.empty((min(self.size, self.slide.tiles), *pixels.shape[1:]), pixels.dtype)
        assert self.logits is not None

        # Rank the buffer and the new tiles together by the log-sum-exp so far.
        candidates = np.concatenate([self.kept, found.scanned])
        best = _best_first(selection_score(self.logits[candidates], self.total), candidates, self.size)

        # Tiles that stay keep their row, so that their pixels are not copied. New tiles take the rows of those that
        # leave, then the rows that are still empty.
        held = len(self.kept)
        stays = np.zeros(held, bool)
        stays[best[best < held]] = True
        entering = best[best >= held] - held  # positions within the new tiles
        free = np.concatenate([np.flatnonzero(~stays), np.arange(held, len(self.pixels))])[: len(entering)]
        self.kept = np.concatenate([self.kept, np.empty(len(best) - held, np.int64)])
        self.kept[free] = found.scanned[entering]
        for row, source in zip(free, rows[entering], strict=True):
            self.pixels[row] = pixels[source]

    def finish(self, read_again: Callable[[TileIds], Pixels]) -> Selection:
        if self.logits is None or self.pixels is None:
            raise ScoresError(f"slide {self.slide.slide_id}: no tile was scanned; leave empty slides out")
        held = {int(tile): self.pixels[row] for row, tile in enumerate(self.kept)}
        scanned = np.flatnonzero(self.seen).astype(np.int64)
        probability = None if self.probability is None else self.probability[scanned]
        return _select(Scanned(scanned, self.logits[scanned], probability), self.size, held, read_again)

    def _store(self, found: Scanned) -> None:
        if self.logits is None:
            self.logits = np.empty((self.slide.tiles, *found.logits.shape[1:]), np.float32)
        if found.probability is not None and self.probability is None:
            self.probability = np.empty((self.slide.tiles, found.probability.shape[1]), np.float32)
        self.seen[found.scanned] = True
        self.logits[found.scanned] = found.logits
        if found.probability is not None and self.probability is not None:
            self.probability[found.scanned] = found.probability
