"""Which tiles of a slide a step learns from, and what their pixels look like.

Everything random follows from (seed, epoch, slide, tile), so whoever chooses again chooses the same.

Shapes: K ≤ M kept tiles of h x w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import ComputeSection, PlannedTraining
from wsi_ips.config.planned import WARM_START_TILES
from wsi_ips.labels import Truth
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.selection import Selection
from wsi_ips.scanning import ChunkLimit, Prepare, ScanOptions, plain_patches, scan_slides
from wsi_ips.tiles import SlideTiles, read_tiles
from wsi_ips.training.augment import augment, tile_keys
from wsi_ips.training.plan import Deal, deal
from wsi_ips.training.record import LastSelection, Meter
from wsi_ips.training.shares import StepTable, join_shared, piece_requests
from wsi_ips.training.world import World


@dataclass(frozen=True)
class LabelledSlide:
    """One slide to learn from: its tiles, and for each task what is known of it.

    Attributes
    ----------
    tiles
        Where its pixels are.
    truths
        An entry per task.
    view
        How many turns it had in the same epoch before; another view has other random tiles and augmentation.
    """

    tiles: SlideTiles
    truths: tuple[Truth, ...]
    view: int = 0

    @property
    def slide_id(self) -> str:
        """Identity of the slide."""
        return self.tiles.slide_id


@dataclass(frozen=True)
class Kept:
    """Tiles of one slide to learn from: ids, shape (K,), and patches, uint8, shape (K, h, w, 3)."""

    tiles: NDArray[np.int64]
    pixels: NDArray[np.uint8]


class TileChoice:
    """Chooses the tiles of training slides.

    Parameters
    ----------
    section, compute
        Sections ``training`` and ``compute`` of the recipe.
    memory_size
        Tiles kept per slide (M).
    seed
        Seed of tile dropout, random tiles and augmentation.
    device
        Where patches go.
    limit
        Of the patches scored at once.
    world
        The processes that share the slides of a step.

    Attributes
    ----------
    meter
        Told of tiles, time and overlap.
    last
        The best tiles of every slide at its last visit.
    """

    def __init__(
        self,
        section: PlannedTraining,
        compute: ComputeSection,
        *,
        memory_size: int,
        seed: int,
        device: torch.device,
        limit: ChunkLimit,
        world: World,
    ) -> None:
        self.section, self.compute, self.memory_size = section, compute, memory_size
        self.seed, self.device, self.limit, self.world = seed, device, limit, world
        self.meter, self.last = Meter(), LastSelection(memory_size)

    def deal(self, batch: Sequence[LabelledSlide], epoch: int) -> Deal:
        """Who scans and learns what of these slides; without a scan no slide costs more than another."""
        is_warm = self._is_warm(epoch)
        return deal([1 if is_warm else self.scanned_count(s) for s in batch], self.world.size, whole=is_warm)

    def kept(self, net: IpsNet, batch: Sequence[LabelledSlide], epoch: int, table: StepTable) -> list[Kept] | None:
        """Tiles of the own slides to learn from: random ones in the warm start, later the best and some random ones.

        Writes the best into the table. None where this process failed and the others are to be told.
        """
        shares = self.deal(batch, epoch)
        own = shares.owned(self.world.rank)
        if self._is_warm(epoch):
            return self.world.attempt(lambda: [self._random(batch[number], epoch) for number in own])
        requests = [self._request(slot, slide, epoch) for slot, slide in enumerate(batch)]
        pieces = shares.pieces[self.world.rank]
        prepare = self.prepare([batch[piece.slide] for piece in pieces], epoch)
        scanned = self.world.attempt(lambda: self._scan(net, piece_requests(pieces, requests), prepare))
        found = dict(zip(pieces, scanned or [], strict=False))
        joined = join_shared(self.world, shares, found, requests, memory_size=self.memory_size)
        selections = {piece.slide: selection for piece, selection in found.items()} | joined
        del scanned, found, joined

        def chosen(number: int) -> Kept:
            # Each selection is let go when its pixels have been taken over: not all are in memory twice.
            best = selections.pop(number)
            table.keep_best(number, best.tiles)
            return self._explored(batch[number], best, epoch)

        return self.world.attempt(lambda: [chosen(number) for number in own])

    def note(self, batch: Sequence[LabelledSlide], table: StepTable) -> None:
        """Count entropy and overlap of the slides of a whole step."""
        for number, slide in enumerate(batch):
            entropy, best = float(table.entropy[number]), table.best_of(number)
            if math.isfinite(entropy):  # not where one tile was kept
                self.meter.add("attention_entropy", entropy)
            overlap = self.last.overlap(slide.slide_id, best) if len(best) else None
            if overlap is not None:
                self.meter.add("selection_overlap", overlap)

    def scanned_count(self, slide: LabelledSlide) -> int:
        """How many of a slide's tiles are scanned."""
        return max(1, round(len(slide.tiles.index) * (1 - self.section.tile_dropout)))

    def kept_count(self, slide: LabelledSlide, epoch: int) -> int:
        """How many of a slide's tiles are learned from."""
        if self._is_warm(epoch):
            return min(WARM_START_TILES, len(slide.tiles.index))
        return min(self.memory_size, self.scanned_count(slide))

    def _is_warm(self, epoch: int) -> bool:
        return epoch <= self.section.warm_start_epochs

    def _scan(self, net: IpsNet, requests: Sequence[SlideTiles], prepare: Prepare) -> list[Selection]:
        if not requests:
            return []
        with self.meter.clock("scan"):
            options = ScanOptions(
                self.memory_size,
                self.compute,
                self.limit,
                on_tiles=partial(self.meter.add, "tiles"),
                reading=partial(self.meter.clock, "scan_read"),
            )
            return scan_slides(net, requests, prepare, options)

    def _random(self, slide: LabelledSlide, epoch: int) -> Kept:
        """A few random tiles: what tells one slide from another (stain) averages out over many slides."""
        order = self._rng(slide, epoch, purpose=1).permutation(len(slide.tiles.index))
        drawn = np.sort(order[:WARM_START_TILES])
        return Kept(drawn, self._read(slide, drawn))

    def _explored(self, slide: LabelledSlide, best: Selection, epoch: int) -> Kept:
        """Replace the last of the best tiles by random ones of the scan; fewer from epoch to epoch."""
        first, last = self.section.warm_start_epochs + 1, self.section.epochs
        share = self.section.exploration * (last - epoch) / max(1, last - first)
        others = np.setdiff1d(best.scanned, best.tiles)
        count = min(round(share * len(best.tiles)), len(others))
        if count == 0:
            return Kept(best.tiles, best.pixels)
        drawn = np.sort(self._rng(slide, epoch, purpose=2).permutation(others)[:count])
        pixels = self._read(slide, drawn)
        stay = len(best.tiles) - count
        return Kept(np.concatenate([best.tiles[:stay], drawn]), np.concatenate([best.pixels[:stay], pixels]))

    def _read(self, slide: LabelledSlide, tiles: NDArray[np.integer]) -> NDArray[np.uint8]:
        with self.meter.clock("read"):
            return read_tiles(slide.tiles.only(tiles.astype(np.int32)))

    def _request(self, slot: int, slide: LabelledSlide, epoch: int) -> SlideTiles:
        """The slide's tiles of this epoch, a random share of them left out."""
        request = slide.tiles.at_slot(slot)
        count, keep = len(request.index), self.scanned_count(slide)
        if keep == count:
            return request
        chosen = self._rng(slide, epoch, purpose=0).permutation(count)[:keep]
        return request.only(np.sort(chosen).astype(np.int32))

    def _rng(self, slide: LabelledSlide, epoch: int, *, purpose: int) -> np.random.Generator:
        tiles = np.array([2**40 + purpose])
        return np.random.default_rng(int(self._keys(slide, epoch, tiles)[0]))

    def _keys(self, slide: LabelledSlide, epoch: int, tiles: NDArray[np.integer]) -> NDArray[np.uint64]:
        """Random numbers of a slide's tiles in an epoch, others in each view of it."""
        return tile_keys(seed=self.seed, epoch=epoch + slide.view * 2**20, slide_id=slide.slide_id, tiles=tiles)

    def prepare(self, batch: Sequence[LabelledSlide], epoch: int) -> Prepare:
        """Augmentation by (seed, epoch, slide, tile): scan and gradient see the same pixels."""
        strengths = self.section.augment
        if not any(strengths.model_dump().values()):
            return plain_patches(self.device)

        def prepare(pixels: Tensor, slot: NDArray[np.integer], tile: NDArray[np.integer]) -> Tensor:
            keys = np.empty(len(tile), np.uint64)
            for s in np.unique(slot):
                rows = slot == s
                keys[rows] = self._keys(batch[s], epoch, tile[rows])
            return augment(to_float(pixels.to(self.device)), keys, strengths)

        return prepare
