"""The training loop: scan without gradient, learn from the winners with gradient.

One step (Bergner et al., 2023, algorithm 1, with exact selection):

1. stream all tiles of B slides through the network in evaluation mode, keep the M best of each;
2. encode the winners again with gradient, pool them with a mask, take the loss, step the optimiser.

Shapes: B slides of a step, K ≤ M kept tiles (padded to the longest of the batch, masked), C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from wsi_ips.config import ComputeSection, TrainingSection
from wsi_ips.errors import TrainingError
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.selection import Selection
from wsi_ips.scanning import Prepare, Winners, plain_patches, scan_slides, slide_probabilities
from wsi_ips.tiles import SlideTiles, read_tiles
from wsi_ips.training.augment import augment, tile_keys
from wsi_ips.training.gradient import StepGradient
from wsi_ips.training.rescan import LastScores

GRADIENT_NORM = 1.0
START_SLIDES, START_TILES = 16, 256
ROWS_AT_A_TIME = 256
"""Tiles of which the tile loss keeps activations at a time."""

WARM_START_TILES = 4
"""Random tiles per slide and step of the warm start."""


@dataclass(frozen=True)
class LabelledSlide:
    """One slide to learn from: its tiles and the position of its label among the classes."""

    tiles: SlideTiles
    label: int

    @property
    def slide_id(self) -> str:
        """Identity of the slide."""
        return self.tiles.slide_id


@dataclass(frozen=True)
class Kept:
    """Tiles of one slide to learn from: ids, shape (K,), and patches, uint8, shape (K, h, w, 3)."""

    tiles: NDArray[np.int64]
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class EpochRecord:
    """Figures of one epoch.

    Attributes
    ----------
    epoch
        Counted from 1.
    loss
        Mean training loss of the slides.
    accuracy
        Share of training slides whose most probable class is theirs, dropout on.
    val_loss
        Mean cross-entropy of the validation slides; None without any and in the warm start.
    learning_rate
        At the end of the epoch.
    """

    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None
    learning_rate: float


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
        Told how the gradient is taken where that is not in one pass.
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
    ) -> None:
        self.net, self.memory_size, self.section, self.compute = net, memory_size, section, compute
        self.seed, self.device, self.on_slides = abs(seed), device, on_slides
        self.last_scores = LastScores(best=section.rescan_best, random=section.rescan_random)
        self.gradient = StepGradient(
            compute.gradient, micro_batch=compute.micro_batch, budget_gb=compute.gpu_memory_gb, note=note
        )

    def fit(
        self,
        train: Sequence[LabelledSlide],
        val: Sequence[LabelledSlide],
        *,
        classes: int,
        on_epoch: Callable[[EpochRecord], None],
    ) -> None:
        """Run all epochs.

        ``on_epoch`` sees the figures of an epoch while the network holds that epoch's weights.

        Raises
        ------
        TrainingError
            A class without training slides, or a loss that is not finite.
        """
        labels = [slide.label for slide in train]
        weights = class_weights(labels, classes, balanced=self.section.class_weights).to(self.device)
        optimiser = torch.optim.AdamW(
            self.net.parameter_groups(self.section.weight_decay), lr=self.section.learning_rate
        )
        self._start_encoder(train)
        steps = [self._steps(len(train), epoch) for epoch in range(1, self.section.epochs + 1)]
        warmup = round(self.section.warmup_epochs * steps[0])
        rate = partial(warmup_cosine, warmup=warmup, total=sum(steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
        for epoch in range(1, self.section.epochs + 1):
            order = np.random.default_rng([self.seed, epoch]).permutation(len(train))
            loss, right = 0.0, 0
            for part in np.array_split(order, steps[epoch - 1]):
                step_loss, step_right = self._step([train[i] for i in part], epoch, weights, optimiser)
                schedule.step()
                loss, right = loss + step_loss * len(part), right + step_right
                self.on_slides(len(part))
            on_epoch(
                EpochRecord(
                    epoch,
                    loss / len(train),
                    right / len(train),
                    self._validate(val) if val and self._validates(epoch) else None,
                    float(schedule.get_last_lr()[0]),
                )
            )

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
        """Show the encoder some tiles of several slides before the first step."""
        rng = np.random.default_rng([self.seed, 0])
        chosen = rng.permutation(len(slides))[:START_SLIDES]
        each = max(2, START_TILES // len(chosen))
        pixels = []
        for number in chosen:
            tiles = slides[number].tiles
            drawn = np.sort(rng.permutation(len(tiles.index))[:each])
            pixels.append(read_tiles(tiles.only(drawn.astype(np.int32))))
        self.net.eval()
        self.net.encoder.start(to_float(torch.from_numpy(np.concatenate(pixels)).to(self.device)))

    def _step(
        self, batch: Sequence[LabelledSlide], epoch: int, weights: Tensor, optimiser: torch.optim.Optimizer
    ) -> tuple[float, int]:
        """One update; mean loss and number of slides classified rightly."""
        prepare = self._augmented([slide.slide_id for slide in batch], epoch)
        kept = self._kept(batch, epoch, prepare)
        self.net.train()
        truth = torch.tensor([slide.label for slide in batch], device=self.device)  # (B,)
        criterion = partial(functional.cross_entropy, weight=weights, label_smoothing=self.section.label_smoothing)
        right = 0

        def loss_of(embeddings: Tensor, mask: Tensor) -> Tensor:
            nonlocal right
            logits = self.net(embeddings, mask)  # (B, C)
            right = int((logits.argmax(1) == truth).sum())
            loss = criterion(logits, truth)
            if self.section.tile_loss:
                loss = loss + self.section.tile_loss * self._tile_loss(embeddings, mask, truth, criterion, epoch)
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

    def _tile_loss(
        self, embeddings: Tensor, mask: Tensor, truth: Tensor, criterion: Callable[..., Tensor], epoch: int
    ) -> Tensor:
        """Loss of each kept tile alone against the slide's label.

        Tiles of a slide of the first class count evenly, for they are all of it; tiles of another class
        count by attention, for only some of them are. In the warm start, when attention means nothing yet, all
        count evenly. Weights carry no gradient and sum to 1 per slide.
        """
        with torch.no_grad():
            attention = selection_weights(self.net.pooling.logits(embeddings), mask)  # (B, K)
        evenly = mask / mask.sum(1, keepdim=True)  # (B, K)
        even = (truth[:, None] == 0) | (epoch <= self.section.warm_start_epochs)  # (B, 1)
        share = torch.where(even, evenly, attention)[mask]  # (sum K,)
        label = truth[:, None].expand_as(mask)[mask]  # (sum K,)

        def part(embeddings: Tensor, label: Tensor, share: Tensor) -> Tensor:  # (k, D), (k,), (k,)
            alone = self.net.head(self.net.pooling.alone(embeddings)[:, 0])  # (k, C)
            return (criterion(alone, label, reduction="none") * share).sum()

        return in_parts(part, embeddings[mask], label, share) / len(truth)

    def _kept(self, batch: Sequence[LabelledSlide], epoch: int, prepare: Prepare) -> list[Kept]:
        """Tiles to learn from: random ones in the warm start, later the best and some random ones."""
        if epoch <= self.section.warm_start_epochs:
            return [self._random(slide, epoch) for slide in batch]
        requests = [self._request(slot, slide, epoch) for slot, slide in enumerate(batch)]
        selections = scan_slides(
            self.net, requests, memory_size=self.memory_size, compute=self.compute, prepare=prepare
        )
        if self.section.rescan_every > 1:
            for slide, found in zip(batch, selections, strict=True):
                self.last_scores.keep(slide.slide_id, len(slide.tiles.index), found)
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
        if (epoch - self.section.warm_start_epochs - 1) % self.section.rescan_every:
            rng = self._rng(slide, epoch, purpose=3)
            some = self.last_scores.partial(slide.slide_id, at_least=self.memory_size, rng=rng)
            if some is not None:
                return request.only(some)
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
        """Mean cross-entropy of slides, one at a time, without augmentation."""
        prepare = plain_patches(self.device)
        total = 0.0
        for slide in slides:
            selections = scan_slides(
                self.net,
                [slide.tiles.at_slot(0)],
                memory_size=self.memory_size,
                compute=self.compute,
                prepare=prepare,
            )
            probability = slide_probabilities(
                self.net, [slide.tiles], selections, prepare, chunk_size=self.compute.chunk_size
            )[0, slide.label]
            total -= math.log(max(float(probability), 1e-12))
        return total / len(slides)


def class_weights(labels: Sequence[int], classes: int, *, balanced: bool) -> Tensor:
    """Weight per class, inverse to its frequency and 1 on average over slides, shape (C,).

    Raises
    ------
    TrainingError
        Fewer than two classes occur.
    """
    counts = np.bincount(labels, minlength=classes)
    if (counts > 0).sum() < 2:
        raise TrainingError(
            f"all {len(labels)} training slides have one class (counts {counts.tolist()}): a classifier needs "
            "two; check columns `label` and `split` of the manifest"
        )
    weights = len(labels) / (np.maximum(counts, 1) * (counts > 0).sum())
    return torch.tensor(weights if balanced else np.ones(classes), dtype=torch.float32)


def warmup_cosine(step: int, *, warmup: int, total: int) -> float:
    """Factor of the learning rate: linear to 1 over ``warmup`` steps, then cosine to 0.001 at ``total``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.001 + 0.999 * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def in_parts(part: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Sum of a loss over parts of some rows, in the memory of one part.

    Each part is computed again in the backward pass, with the same random numbers. How many rows a part has is fixed,
    for random numbers depend on it and results must not depend on the machine.

    Parameters
    ----------
    part
        Takes the same rows of all tensors; gives a scalar.
    rows
        Tensors of one length n.
    """
    if len(rows[0]) <= ROWS_AT_A_TIME:
        return part(*rows)
    splits = zip(*(tensor.split(ROWS_AT_A_TIME) for tensor in rows), strict=True)
    parts = [checkpoint(part, *some, use_reentrant=False) for some in splits]
    return torch.stack(parts).sum()


def selection_weights(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean attention of the kept tiles over queries and heads; sums to 1 per slide.

    Parameters
    ----------
    logits
        Shape (B, K, T, H).
    mask
        bool, shape (B, K).

    Returns
    -------
    torch.Tensor
        Shape (B, K); 0 where there is no tile.
    """
    masked = logits.masked_fill(~mask[:, :, None, None], -torch.inf)
    return masked.softmax(dim=1).mean(dim=(2, 3))
