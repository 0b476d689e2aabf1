"""Choice of the tiles that a step learns from, and their augmented pixels.

Everything random follows from (seed, epoch, slide, tile), so choosing again gives the same.

Shapes: K ≤ M kept tiles of h x w pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import AugmentSection
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.selection import Selection
from wsi_ips.scanning import ChunkLimit, Prepare, ScanOptions, plain_patches, scan_slides
from wsi_ips.tiles.feature_store import FeatureTiles
from wsi_ips.tiles.stream import SlideTiles, read_tiles
from wsi_ips.training.augment import augment, tile_keys
from wsi_ips.training.known_tiles import with_missed
from wsi_ips.training.processes import Division, Processes, divide, join_shared, piece_requests
from wsi_ips.training.settings import LabelledSlide, Settings
from wsi_ips.training.starts import STARTS, Start
from wsi_ips.training.tracking import Meter

DROPOUT, RANDOM_TILES, EXPLORATION, MISSED, GRID = range(5)  # streams of random numbers of a slide in an epoch


@dataclass(frozen=True)
class Kept:
    """Tiles of one slide to learn from."""

    tiles: NDArray[np.int64]  # (K,), ids
    pixels: NDArray[np.uint8]  # (K, h, w, 3)


class TileChoice:
    """Chooses the tiles of training slides, together with the other processes."""

    def __init__(self, settings: Settings, processes: Processes, limit: ChunkLimit) -> None:
        self.settings, self.processes, self.limit = settings, processes, limit
        self.meter = Meter()
        self._start: Start | None = STARTS[settings.section.start].load()(settings)

    def start_of(self, epoch: int) -> Start | None:
        """Return the start phase if the epoch belongs to it, else None."""
        return self._start if self._start is not None and epoch <= self._start.epochs else None

    def division(self, batch: Sequence[LabelledSlide], epoch: int) -> Division:
        """Return which process scans and learns from which slides; without a scan all slides cost the same."""
        without_scan = self.start_of(epoch) is not None
        tiles = [1 if without_scan else self.scanned_count(slide) for slide in batch]
        return divide(tiles, self.processes.size, whole=without_scan)

    def kept(
        self, net: IpsNet, batch: Sequence[LabelledSlide], epoch: int, best: dict[int, NDArray[np.int64]]
    ) -> list[Kept] | None:
        """Return the tiles of the own slides to learn from; fill in ``best``, the best tiles by number of the slide.

        None where this process failed and the others do not know it yet.
        """
        division = self.division(batch, epoch)
        own = division.owned(self.processes.rank)
        start = self.start_of(epoch)
        if start is not None:
            return self.processes.attempt(lambda: [self._given(start, batch[number], epoch) for number in own])
        requests = [self._request(slot, slide, epoch) for slot, slide in enumerate(batch)]
        pieces = division.pieces[self.processes.rank]
        prepare = self.prepare([batch[piece.slide] for piece in pieces], epoch)
        scanned = self.processes.attempt(lambda: self._scan(net, piece_requests(pieces, requests), prepare))
        found = dict(zip(pieces, scanned or [], strict=False))
        memory_size = self.settings.memory_size
        joined = join_shared(self.processes, division, found, requests, memory_size=memory_size)
        selections = {piece.slide: selection for piece, selection in found.items()} | joined
        del scanned, found, joined

        def chosen(number: int) -> Kept:
            # Each selection is released once its pixels are taken over, so not all pixels are in memory twice.
            selection = selections.pop(number)
            best[number] = selection.tiles
            return self._with_missed(batch[number], self._explored(batch[number], selection, epoch), epoch)

        return self.processes.attempt(lambda: [chosen(number) for number in own])

    def scanned_count(self, slide: LabelledSlide) -> int:
        """Return how many of a slide's tiles are scanned."""
        return max(1, round(len(slide.tiles.index) * (1 - self.settings.section.tile_dropout)))

    def kept_count(self, slide: LabelledSlide, epoch: int) -> int:
        """Return how many of a slide's tiles are learned from."""
        start = self.start_of(epoch)
        if start is not None:
            return start.tile_count(slide)
        return min(self.settings.memory_size, self.scanned_count(slide))

    def placed(self, slide: LabelledSlide, epoch: int) -> LabelledSlide:
        """Return the slide with the tile grid of this epoch: moved by up to half a tile, or as it is stored."""
        if not self.settings.section.grid_shift or isinstance(slide.tiles, FeatureTiles):
            return slide  # stored features are those of the stored grid
        index = slide.tiles.index
        half_px = np.array(index.plan.patch_size) // 2
        x, y = self._rng(slide, epoch, GRID).integers(-half_px, half_px, endpoint=True).tolist()
        moved = replace(slide, tiles=replace(slide.tiles, index=index.moved((x, y))))
        if slide.truth is None:
            return moved
        truth = slide.truth.at(moved.tiles.index)
        is_lost = slide.draws is not None and not truth.candidates(slide.draws)  # a lesion at the edge of the tissue
        return slide if is_lost else replace(moved, truth=truth)

    def prepare(self, batch: Sequence[LabelledSlide], epoch: int) -> Prepare:
        """Return the augmentation by (seed, epoch, slide, tile): scan and gradient see the same pixels."""

        def keys(slot: int, tiles: NDArray[np.integer]) -> NDArray[np.uint64]:
            return self._keys(batch[slot], epoch, tiles)

        return augmented_patches(self.settings.section.augment, self.processes.device, keys)

    def _scan(self, net: IpsNet, requests: Sequence[SlideTiles], prepare: Prepare) -> list[Selection]:
        if not requests:
            return []
        size, compute = self.settings.memory_size, self.settings.compute
        counted, clock = partial(self.meter.add, "tiles"), partial(self.meter.clock, "scan_read")
        with self.meter.clock("scan"):
            options = ScanOptions(size, compute, self.limit, on_tiles=counted, reading=clock)
            return scan_slides(net, requests, prepare, options)

    def _given(self, start: Start, slide: LabelledSlide, epoch: int) -> Kept:
        tiles = start.tiles(slide, self._rng(slide, epoch, RANDOM_TILES))
        return Kept(tiles.astype(np.int64), self._read(slide, tiles))

    def _explored(self, slide: LabelledSlide, best: Selection, epoch: int) -> Kept:
        """Replace the last of the best tiles by random scanned ones; fewer from epoch to epoch."""
        section = self.settings.section
        first = 1 + (self._start.epochs if self._start is not None else 0)
        share = section.exploration * (section.epochs - epoch) / max(1, section.epochs - first)
        others = np.setdiff1d(best.scanned, best.tiles)
        count = min(round(share * len(best.tiles)), len(others))
        if count == 0:
            return Kept(best.tiles, best.pixels)
        drawn = np.sort(self._rng(slide, epoch, EXPLORATION).permutation(others)[:count])
        pixels = self._read(slide, drawn)
        stay = len(best.tiles) - count
        return Kept(np.concatenate([best.tiles[:stay], drawn]), np.concatenate([best.pixels[:stay], pixels]))

    def _with_missed(self, slide: LabelledSlide, kept: Kept, epoch: int) -> Kept:
        """Replace kept tiles by tiles inside outlines that selection missed."""
        share = self.settings.section.known_tiles
        if slide.truth is None or not share:
            return kept
        stay, drawn = with_missed(slide.truth, kept.tiles, share, self._rng(slide, epoch, MISSED))
        if not len(drawn):
            return kept
        pixels = self._read(slide, drawn)
        return Kept(np.concatenate([kept.tiles[stay], drawn]), np.concatenate([kept.pixels[stay], pixels]))

    def _read(self, slide: LabelledSlide, tiles: NDArray[np.integer]) -> NDArray[np.uint8]:
        with self.meter.clock("read"):
            return read_tiles(slide.tiles.only(tiles.astype(np.int32)))

    def _request(self, slot: int, slide: LabelledSlide, epoch: int) -> SlideTiles:
        """Return the tiles to scan in this epoch: a random share is left out."""
        request = slide.tiles.at_slot(slot)
        count, keep = len(request.index), self.scanned_count(slide)
        if keep == count:
            return request
        chosen = self._rng(slide, epoch, DROPOUT).permutation(count)[:keep]
        return request.only(np.sort(chosen).astype(np.int32))

    def _rng(self, slide: LabelledSlide, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng(int(self._keys(slide, epoch, np.array([2**40 + stream]))[0]))

    def _keys(self, slide: LabelledSlide, epoch: int, tiles: NDArray[np.integer]) -> NDArray[np.uint64]:
        """Return the random numbers of a slide's tiles in an epoch, different ones in each view of it."""
        seed = abs(self.settings.seed)
        return tile_keys(seed=seed, epoch=epoch + slide.view * 2**20, slide_id=slide.slide_id, tiles=tiles)


def augmented_patches(
    strengths: AugmentSection, device: torch.device, keys_of: Callable[[int, NDArray[np.integer]], NDArray[np.uint64]]
) -> Prepare:
    """Return a function that augments patches on the device; ``keys_of`` gives the random numbers of a slot's tiles."""
    if not any(strengths.model_dump().values()):
        return plain_patches(device)

    def prepare(pixels: Tensor, slot: NDArray[np.integer], tile: NDArray[np.integer]) -> Tensor:
        keys = np.empty(len(tile), np.uint64)
        for s in np.unique(slot):
            rows = slot == s
            keys[rows] = keys_of(s, tile[rows])
        return augment(to_float(pixels.to(device)), keys, strengths)

    return prepare
