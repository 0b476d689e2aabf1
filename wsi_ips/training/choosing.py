"""Which tiles of a slide a step learns from, and what their pixels look like.

Everything random follows from (seed, epoch, slide, tile), so whoever chooses again chooses the same.

Shapes: K ≤ M kept tiles of h x w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import ComputeSection, TrainingSection
from wsi_ips.labels import Truth
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.selection import Selection
from wsi_ips.scanning import ChunkLimit, Prepare, plain_patches, scan_slides
from wsi_ips.tiles import SlideTiles, read_tiles
from wsi_ips.training.augment import augment, tile_keys
from wsi_ips.training.record import LastSelection, Meter

WARM_START_TILES = 4
"""Random tiles per slide and step of the warm start."""


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

    Attributes
    ----------
    meter
        Told of tiles, time and overlap.
    last
        The best tiles of every slide at its last visit.
    """

    def __init__(
        self,
        section: TrainingSection,
        compute: ComputeSection,
        *,
        memory_size: int,
        seed: int,
        device: torch.device,
        limit: ChunkLimit,
    ) -> None:
        self.section, self.compute, self.memory_size = section, compute, memory_size
        self.seed, self.device, self.limit = seed, device, limit
        self.meter, self.last = Meter(), LastSelection(memory_size)

    def kept(self, net: IpsNet, batch: Sequence[LabelledSlide], epoch: int, prepare: Prepare) -> list[Kept]:
        """Tiles to learn from: random ones in the warm start, later the best and some random ones."""
        if epoch <= self.section.warm_start_epochs:
            return [self._random(slide, epoch) for slide in batch]
        requests = [self._request(slot, slide, epoch) for slot, slide in enumerate(batch)]
        with self.meter.clock("scan"):
            selections = scan_slides(
                net,
                requests,
                memory_size=self.memory_size,
                compute=self.compute,
                prepare=prepare,
                limit=self.limit,
                on_tiles=partial(self.meter.add, "tiles"),
                reading=partial(self.meter.clock, "scan_read"),
            )
        # Each selection is let go when its pixels have been taken over: not all are in memory twice.
        return [self._explored(slide, selections.pop(0), epoch) for slide in batch]

    def _random(self, slide: LabelledSlide, epoch: int) -> Kept:
        """A few random tiles: what tells one slide from another (stain) averages out over many slides."""
        order = self._rng(slide, epoch, purpose=1).permutation(len(slide.tiles.index))
        drawn = np.sort(order[:WARM_START_TILES])
        return Kept(drawn, self._read(slide, drawn))

    def _explored(self, slide: LabelledSlide, best: Selection, epoch: int) -> Kept:
        """Replace the last of the best tiles by random ones of the scan; fewer from epoch to epoch."""
        overlap = self.last.overlap(slide.slide_id, best.tiles)
        if overlap is not None:
            self.meter.add("selection_overlap", overlap)
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
        count = len(request.index)
        keep = max(1, round(count * (1 - self.section.tile_dropout)))
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
