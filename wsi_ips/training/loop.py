"""The training loop: scan without gradient, learn from the winners with gradient.

One step (Bergner et al., 2023, algorithm 1, with exact selection):

1. stream all tiles of B slides through the network in evaluation mode, keep the M best of each;
2. encode the winners again with gradient, pool them with a mask, take the loss, step the optimiser.

Shapes: B slides of a step, K ≤ M kept tiles (padded to the longest of the batch, masked), k of all kept tiles, T tasks,
C classes of all tasks, C_t of one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import ComputeSection, TrainingSection
from wsi_ips.errors import TrainingError
from wsi_ips.labels import Truth
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.selection import Selection
from wsi_ips.model.tasks import share_right, task_loss, task_losses_each, truth_tensors
from wsi_ips.scanning import ChunkLimit, Prepare, Winners, plain_patches, scan_slides, slide_logits
from wsi_ips.tiles import SlideTiles, read_tiles
from wsi_ips.training.augment import augment, tile_keys
from wsi_ips.training.gradient import StepGradient
from wsi_ips.training.resume import EpochRecord, Position, StateFile, StopRequest
from wsi_ips.training.tile_loss import tile_loss
from wsi_ips.training.weights import task_weights

GRADIENT_NORM = 1.0
START_SLIDES, START_TILES, START_BATCH = 16, 256, 64
WARM_START_TILES = 4
"""Random tiles per slide and step of the warm start."""


@dataclass(frozen=True)
class LabelledSlide:
    """One slide to learn from: its tiles, and for each task what is known of it."""

    tiles: SlideTiles
    truths: tuple[Truth, ...]

    @property
    def slide_id(self) -> str:
        """Identity of the slide."""
        return self.tiles.slide_id


@dataclass(frozen=True)
class Kept:
    """Tiles of one slide to learn from: ids, shape (K,), and uint8 (K, h, w, 3), or float16 (K, F)."""

    tiles: NDArray[np.int64]
    pixels: NDArray[Any]


class Trainer:
    """Trains one network on one cohort.

    Parameters
    ----------
    net
        Network, already on ``device``.
    memory_size
        Tiles kept per slide (M).
    section, compute
        Sections ``training`` and ``compute`` of the recipe.
    seed
        Seed of order, tile dropout, random tiles and augmentation.
    device
        Where the network lives.
    on_slides
        Called with the number of training slides finished, after each step.
    note
        Told how the gradient is taken where that is not in one pass, and where memory runs out.
    re_estimate
        Take the statistics of batch norm from tiles of the training slides before the first step.
    started
        The network comes from an earlier training: its embeddings are not standardised anew.
    """

    def __init__(
        self,
        net: IpsNet,
        *,
        memory_size: int,
        section: TrainingSection,
        compute: ComputeSection,
        seed: int,
        device: torch.device,
        on_slides: Callable[[int], None] = lambda _: None,
        note: Callable[[str], None] = lambda _: None,
        re_estimate: bool = False,
        started: bool = False,
    ) -> None:
        self.net, self.memory_size, self.section, self.compute = net, memory_size, section, compute
        self.seed, self.device, self.on_slides = abs(seed), device, on_slides
        self.limit = ChunkLimit(compute.chunk_size, note)
        self.re_estimate, self.started = re_estimate, started
        self.gradient = StepGradient(
            compute.gradient, micro_batch=compute.micro_batch, budget_gb=compute.gpu_memory_gb, note=note
        )

    def fit(
        self,
        train: Sequence[LabelledSlide],
        val: Sequence[LabelledSlide],
        *,
        on_epoch: Callable[[EpochRecord], None],
        state: StateFile | None = None,
        on_resume: Callable[[Sequence[EpochRecord]], None] = lambda _: None,
        stop: StopRequest | None = None,
    ) -> None:
        """Run all epochs, from where an earlier call stopped.

        Parameters
        ----------
        train, val
            Slides to learn from, and to measure on.
        on_epoch
            Sees the figures of an epoch while the network holds that epoch's weights.
        state
            Where the state is kept; None begins anew and keeps none.
        on_resume
            Sees the figures of the epochs done, where the training goes on.
        stop
            Asked after every step.

        Raises
        ------
        TrainingError
            A task whose training slides are all alike, or a loss that is not finite.
        KeyboardInterrupt
            It was asked to stop; the state is saved.
        """
        known = truth_tensors([slide.truths for slide in train], self.net.tasks)
        weights = [
            task_weights(truth, task, balanced=self.section.class_weights).to(self.device)
            for truth, task in zip(known, self.net.tasks, strict=True)
        ]
        optimiser = torch.optim.AdamW(
            self.net.parameter_groups(self.section.weight_decay), lr=self.section.learning_rate
        )
        position = state.load(self.net, optimiser) if state else None
        if position is None:
            position = Position()
            if not self.started:
                self._start_encoder(train)
        else:
            on_resume(position.history)
        began = time.monotonic() - position.seconds
        steps = [self._steps(len(train), epoch) for epoch in range(1, self.section.epochs + 1)]
        warmup = round(self.section.warmup_epochs * steps[0])
        rate = partial(warmup_cosine, warmup=warmup, total=sum(steps))
        self.on_slides((position.epoch - 1) * len(train))
        for epoch in range(position.epoch, self.section.epochs + 1):
            order = np.random.default_rng([self.seed, epoch]).permutation(len(train))
            parts = np.array_split(order, steps[epoch - 1])
            self.on_slides(sum(len(part) for part in parts[: position.step]))
            for part in parts[position.step :]:
                set_learning_rate(optimiser, self.section.learning_rate * rate(position.total))
                loss, right = self._step([train[i] for i in part], epoch, weights, optimiser)
                position.loss += loss * len(part)
                position.right += right * len(part)
                position.step += 1
                position.total += 1
                position.seconds = time.monotonic() - began
                self.on_slides(len(part))
                if state and (state.is_due or (stop and stop.asked)):
                    state.save(self.net, optimiser, position)
                if stop and stop.asked:
                    raise KeyboardInterrupt
            record = EpochRecord(
                epoch,
                position.loss / len(train),
                position.right / len(train),
                self._validate(val) if val and self._validates(epoch) else None,
                self.section.learning_rate * rate(position.total),
                round(time.monotonic() - began, 1),
            )
            on_epoch(record)
            seconds = time.monotonic() - began
            history = [*position.history, record]
            position = Position(epoch + 1, total=position.total, seconds=seconds, history=history)
            if state and state.is_due:
                state.save(self.net, optimiser, position)

    def _steps(self, slides: int, epoch: int) -> int:
        """Steps of an epoch; in the warm start the same number of tiles is spread over more slides."""
        batch = self.section.batch_slides
        if epoch <= self.section.warm_start_epochs:
            batch = max(batch, batch * self.memory_size // WARM_START_TILES)
        return math.ceil(slides / batch)

    def _validates(self, epoch: int) -> bool:
        """In the warm start nothing is selected by attention yet, so there is nothing to choose between."""
        return epoch > self.section.warm_start_epochs or epoch == self.section.epochs

    @torch.no_grad()
    def _start_encoder(self, slides: Sequence[LabelledSlide]) -> None:
        """Show the encoder some tiles of several slides before the first step, mixed."""
        rng = np.random.default_rng([self.seed, 0])
        chosen = rng.permutation(len(slides))[:START_SLIDES]
        each = max(2, START_TILES // len(chosen))
        pixels = []
        for number in chosen:
            tiles = slides[number].tiles
            drawn = np.sort(rng.permutation(len(tiles.index))[:each])
            pixels.append(read_tiles(tiles.only(drawn.astype(np.int32))))
        self.net.eval()
        patches = to_float(torch.from_numpy(np.concatenate(pixels)).to(self.device))
        if self.re_estimate:
            mixed = torch.from_numpy(rng.permutation(len(patches))).to(self.device)
            self.net.encoder.estimate_statistics(patches[mixed].split(START_BATCH))
        self.net.encoder.start(patches)

    def _step(
        self,
        batch: Sequence[LabelledSlide],
        epoch: int,
        weights: Sequence[Tensor],
        optimiser: torch.optim.Optimizer,
    ) -> tuple[float, float]:
        """One update; mean loss and share of right answers."""
        prepare = self._augmented([slide.slide_id for slide in batch], epoch)
        kept = self._kept(batch, epoch, prepare)
        self.net.train()
        tasks, smoothing = self.net.tasks, self.section.label_smoothing
        truths = [truth.to(self.device) for truth in truth_tensors([slide.truths for slide in batch], tasks)]
        right = 0.0

        def loss_of(embeddings: Tensor, mask: Tensor) -> Tensor:
            nonlocal right
            logits = self.net(embeddings, mask)  # (B, C)
            right = share_right(logits, truths, tasks)
            loss = task_loss(logits, truths, tasks, weights=weights, label_smoothing=smoothing)
            if self.section.tile_loss:
                each = partial(task_losses_each, tasks=tasks, weights=weights, label_smoothing=smoothing)
                is_warm = epoch <= self.section.warm_start_epochs
                loss = loss + self.section.tile_loss * tile_loss(
                    self.net, embeddings, mask, truths, each, evenly=is_warm
                )
            return loss

        optimiser.zero_grad(set_to_none=True)
        loss = self.gradient(self.net, Winners.of(self.net, [slide.tiles for slide in batch], kept), prepare, loss_of)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"epoch {epoch}: the loss is {loss.item()}; the last good checkpoint is kept; lower "
                "`training.learning_rate` and train again"
            )
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), GRADIENT_NORM)
        optimiser.step()
        return float(loss), right

    def _kept(self, batch: Sequence[LabelledSlide], epoch: int, prepare: Prepare) -> list[Kept]:
        """Tiles to learn from: random ones in the warm start, later the best and some random ones."""
        if epoch <= self.section.warm_start_epochs:
            return [self._random(slide, epoch) for slide in batch]
        requests = [self._request(slot, slide, epoch) for slot, slide in enumerate(batch)]
        selections = scan_slides(
            self.net,
            requests,
            memory_size=self.memory_size,
            compute=self.compute,
            prepare=prepare,
            limit=self.limit,
        )
        # Each selection is let go when its pixels have been taken over: not all are in memory twice.
        return [self._explored(slide, selections.pop(0), epoch) for slide in batch]

    def _random(self, slide: LabelledSlide, epoch: int) -> Kept:
        """A few random tiles: what tells one slide from another (stain) averages out over many slides."""
        order = self._rng(slide, epoch, purpose=1).permutation(len(slide.tiles.index))
        drawn = np.sort(order[:WARM_START_TILES])
        return Kept(drawn, read_tiles(slide.tiles.only(drawn.astype(np.int32))))

    def _explored(self, slide: LabelledSlide, best: Selection, epoch: int) -> Kept:
        """Replace the last of the best tiles by random ones of the scan; fewer from epoch to epoch."""
        first, last = self.section.warm_start_epochs + 1, self.section.epochs
        share = self.section.exploration * (last - epoch) / max(1, last - first)
        others = np.setdiff1d(best.scanned, best.tiles)
        count = min(round(share * len(best.tiles)), len(others))
        if count == 0:
            return Kept(best.tiles, best.pixels)
        drawn = np.sort(self._rng(slide, epoch, purpose=2).permutation(others)[:count])
        pixels = read_tiles(slide.tiles.only(drawn.astype(np.int32)))
        stay = len(best.tiles) - count
        return Kept(np.concatenate([best.tiles[:stay], drawn]), np.concatenate([best.pixels[:stay], pixels]))

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
        key = tile_keys(seed=self.seed, epoch=epoch, slide_id=slide.slide_id, tiles=np.array([2**40 + purpose]))
        return np.random.default_rng(int(key[0]))

    def _augmented(self, slide_ids: Sequence[str], epoch: int) -> Prepare:
        """Augmentation by (seed, epoch, slide, tile): scan and gradient see the same pixels."""
        if not self.section.augment:
            return plain_patches(self.device)

        def prepare(pixels: Tensor, slot: NDArray[np.integer], tile: NDArray[np.integer]) -> Tensor:
            keys = np.empty(len(tile), np.uint64)
            for s in np.unique(slot):
                rows = slot == s
                keys[rows] = tile_keys(seed=self.seed, epoch=epoch, slide_id=slide_ids[s], tiles=tile[rows])
            return augment(to_float(pixels.to(self.device)), keys)

        return prepare

    def _validate(self, slides: Sequence[LabelledSlide]) -> float:
        """Mean loss of slides over tasks, one slide at a time, without augmentation."""
        prepare = plain_patches(self.device)
        logits = []
        for slide in slides:
            selections = scan_slides(
                self.net,
                [slide.tiles.at_slot(0)],
                memory_size=self.memory_size,
                compute=self.compute,
                prepare=prepare,
                limit=self.limit,
            )
            logits.append(slide_logits(self.net, [slide.tiles], selections, prepare, chunk_size=self.limit.patches))
        truths = truth_tensors([slide.truths for slide in slides], self.net.tasks)
        return float(task_loss(torch.cat(logits).cpu(), truths, self.net.tasks))


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """The same rate for all parameters."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def warmup_cosine(step: int, *, warmup: int, total: int) -> float:
    """Factor of the learning rate: linear to 1 over ``warmup`` steps, then cosine to 0.001 at ``total``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.001 + 0.999 * (1 + math.cos(math.pi * min(1.0, progress))) / 2
