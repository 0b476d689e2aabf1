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
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsi_ips.config import ComputeSection, TrainingSection
from wsi_ips.errors import DivergedError, ScoresError
from wsi_ips.model.fast import scan_dtype
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.pooling import selection_weights
from wsi_ips.model.tasks import label_totals, share_right, task_loss, task_losses_each, truth_tensors
from wsi_ips.scanning import ChunkLimit, Winners
from wsi_ips.tiles import read_tiles
from wsi_ips.training.amp import ReducedPrecision
from wsi_ips.training.average import averaged
from wsi_ips.training.choosing import WARM_START_TILES, LabelledSlide, TileChoice
from wsi_ips.training.gradient import StepGradient
from wsi_ips.training.record import EpochRecord, Meter, attention_entropy, waited
from wsi_ips.training.resume import Position, StateFile, Stateful, StopRequest
from wsi_ips.training.schedule import epoch_steps, set_learning_rate, warmup_cosine
from wsi_ips.training.tile_loss import known_slides, tile_loss
from wsi_ips.training.validation import Figures, require_validation, validate
from wsi_ips.training.weights import task_weights

GRADIENT_NORM = 1.0
DEFAULT_RATE = float(TrainingSection.model_fields["learning_rate"].default)
START_SLIDES, START_TILES, START_BATCH = 16, 256, 64


class LossParts(NamedTuple):
    """Loss of some slides, a scalar; their class logits, (B, C); entropy of their attention, (B,)."""

    loss: Tensor
    logits: Tensor
    entropy: Tensor


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
        self.average = averaged(net, section.weight_average) if section.weight_average else None
        self.precision = ReducedPrecision(
            device, scan_dtype(compute.gradient_precision, device, key="compute.gradient_precision")
        )
        self.choice = TileChoice(
            section, compute, memory_size=memory_size, seed=self.seed, device=device, limit=self.limit
        )

    @property
    def meter(self) -> Meter:
        """Sums of the epoch at work."""
        return self.choice.meter

    @property
    def result(self) -> IpsNet:
        """The network to validate and keep: the one that learns, or the average of its weights."""
        if self.average is None:
            return self.net
        assert isinstance(self.average.module, IpsNet)
        return self.average.module

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
            Sees the figures of an epoch while :attr:`result` holds that epoch's weights.
        state
            Where the state is kept; None begins anew and keeps none.
        on_resume
            Sees the figures of the epochs done, where the training goes on.
        stop
            Asked after every step.

        Raises
        ------
        TrainingError
            A task whose training slides are all alike, or no validation slides for what needs them.
        DivergedError
            A loss, gradient or score that is not finite; the weights are those of the step before.
        KeyboardInterrupt
            It was asked to stop; the state is saved.
        """
        section = self.section
        require_validation(section, [slide.truths for slide in val], self.net.tasks)
        weights = self._class_weights(train)
        optimiser = torch.optim.AdamW(self.net.parameter_groups(section.weight_decay), lr=section.learning_rate)
        also: dict[str, Stateful] = {"precision": self.precision, "selections": self.choice.last}
        if self.average is not None:
            also["average"] = self.average
        position = state.load(self.net, optimiser, also) if state else None
        if position is None:
            position = Position()
            if not self.started:
                self._start_encoder(train)
        else:
            on_resume(position.history)
        began = time.monotonic() - position.seconds
        steps = [self._steps(len(train), epoch) for epoch in range(1, section.epochs + 1)]
        rate = partial(warmup_cosine, warmup=round(section.warmup_epochs * steps[0]), total=sum(steps))
        self.on_slides((position.epoch - 1) * len(train))
        while position.epoch <= section.epochs and not self._is_over(position.history):
            self.choice.meter = Meter(position.sums)
            parts = self._visits(train, position.epoch, steps[position.epoch - 1])
            self.on_slides(sum(len(part) for part in parts[: position.step]))
            for part in parts[position.step :]:
                set_learning_rate(optimiser, section.learning_rate * rate(position.total))
                with self.meter.clock("step"):
                    loss, right = self._step(part, position.epoch, weights, optimiser)
                position.loss += loss * len(part)
                position.right += right * len(part)
                position.step += 1
                position.total += 1
                position.seconds = time.monotonic() - began
                self.on_slides(len(part))
                if state and (state.is_due or (stop and stop.asked)):
                    state.save(self.net, optimiser, position, also)
                if stop and stop.asked:
                    raise KeyboardInterrupt
            figures = self._validate(val) if val and self._validates(position.epoch) else None
            record = self._record(position, len(train), figures, section.learning_rate * rate(position.total), began)
            on_epoch(record)
            position = position.after(record, time.monotonic() - began)
            if state and state.is_due:
                state.save(self.net, optimiser, position, also)

    def _class_weights(self, train: Sequence[LabelledSlide]) -> list[Tensor]:
        """Per task; slides that are drawn evenly over the classes of the label need no weights of it besides."""
        known = truth_tensors([slide.truths for slide in train], self.net.tasks)
        drawn_evenly = self.section.sampling == "balanced"
        return [
            task_weights(truth, task, balanced=self.section.class_weights and not (drawn_evenly and number == 0)).to(
                self.device
            )
            for number, (truth, task) in enumerate(zip(known, self.net.tasks, strict=True))
        ]

    def _visits(self, train: Sequence[LabelledSlide], epoch: int, steps: int) -> list[list[LabelledSlide]]:
        """The slides of each step of an epoch."""
        groups, balanced = [slide.truths[0] for slide in train], self.section.sampling == "balanced"
        visits = epoch_steps(groups, seed=self.seed, epoch=epoch, steps=steps, balanced=balanced)
        return [[replace(train[slide], view=view) for slide, view in step] for step in visits]

    def _is_over(self, history: Sequence[EpochRecord]) -> bool:
        """Whether patience ran out."""
        patience = self.section.patience
        return patience is not None and waited(history, self.section.select) >= patience

    def _record(
        self, position: Position, slides: int, figures: Figures | None, learning_rate: float, began: float
    ) -> EpochRecord:
        return EpochRecord(
            epoch=position.epoch,
            loss=position.loss / slides,
            accuracy=position.right / slides,
            val_loss=figures and figures.loss,
            val_auc=figures and figures.auc,
            learning_rate=learning_rate,
            gradient_norm=self.meter.mean("gradient_norm"),
            gradient_norm_max=self.meter.largest("gradient_norm"),
            attention_entropy=self.meter.mean("attention_entropy"),
            selection_overlap=self.meter.mean("selection_overlap"),
            seconds=round(time.monotonic() - began, 1),
            cost=self.meter.cost(self.device),
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
        at_once, tasks = self.compute.slides_at_once or len(batch), self.net.tasks
        parts = [batch[start : start + at_once] for start in range(0, len(batch), at_once)]
        truths = [truth.to(self.device) for truth in truth_tensors([slide.truths for slide in batch], tasks)]
        # A part's loss is divided by the labels of the whole step, so that gradients add up to those of the step.
        totals = label_totals(truths, tasks, weights) if len(parts) > 1 else None
        known = known_slides(truths, tasks)
        optimiser.zero_grad(set_to_none=True)
        loss, logits = 0.0, []
        for part in parts:
            part_loss, part_logits = self._learn(part, epoch, partial(self._loss, epoch, weights, totals, known))
            if not math.isfinite(part_loss):
                raise self._diverged(epoch, f"the loss is {part_loss}", optimiser)
            loss += part_loss
            logits.append(part_logits)
        self.precision.unscale(optimiser)
        norm = float(torch.nn.utils.clip_grad_norm_(self.net.parameters(), GRADIENT_NORM))
        if math.isfinite(norm):
            self.meter.add("gradient_norm", norm)
        elif not self.precision.scales:
            raise self._diverged(epoch, f"the gradient is {norm}", optimiser)
        self.precision.step(optimiser)
        if self.average is not None:
            self.average.update_parameters(self.net)
        return loss, share_right(torch.cat(logits), truths, tasks)

    def _learn(
        self, batch: Sequence[LabelledSlide], epoch: int, loss_of: Callable[[list[Tensor], Tensor, Tensor], LossParts]
    ) -> tuple[float, Tensor]:
        """Add the gradient of some slides; their loss and class logits, shape (B, C)."""
        prepare = self.choice.prepare(batch, epoch)
        try:
            kept = self.choice.kept(self.net, batch, epoch, prepare)
        except ScoresError as error:
            raise self._diverged(epoch, "attention scores are not finite") from error
        self.net.train()
        truths = [t.to(self.device) for t in truth_tensors([slide.truths for slide in batch], self.net.tasks)]
        found: LossParts

        def scaled(embeddings: Tensor, mask: Tensor) -> Tensor:
            nonlocal found
            with self.precision.full():
                found = loss_of(truths, embeddings.float(), mask)
                return self.precision.scale(found.loss)

        with self.meter.clock("gradient"), self.precision.encoder():
            winners = Winners.of(self.net, [slide.tiles for slide in batch], kept)
            self.gradient(self.net, winners, prepare, scaled)
            for entropy in found.entropy.tolist():
                if math.isfinite(entropy):  # not where one tile was kept
                    self.meter.add("attention_entropy", entropy)
            return float(found.loss.detach()), found.logits.detach()

    def _loss(
        self,
        epoch: int,
        weights: Sequence[Tensor],
        totals: Sequence[Tensor] | None,
        known: Tensor,
        truths: list[Tensor],
        embeddings: Tensor,
        mask: Tensor,
    ) -> LossParts:
        """Loss of some slides of a step, of the whole slide and of each kept tile alone."""
        tasks, smoothing = self.net.tasks, self.section.label_smoothing
        logits = self.net(embeddings, mask)  # (B, C)
        loss = task_loss(logits, truths, tasks, weights=weights, label_smoothing=smoothing, totals=totals)
        if self.section.tile_loss:
            each = partial(task_losses_each, tasks=tasks, weights=weights, label_smoothing=smoothing)
            is_warm = epoch <= self.section.warm_start_epochs
            loss = loss + self.section.tile_loss * tile_loss(
                self.net, embeddings, mask, truths, each, evenly=is_warm, known=known
            )
        with torch.no_grad():
            attention = selection_weights(self.net.pooling.logits(embeddings), mask)  # (B, K, T)
        return LossParts(loss, logits, attention_entropy(attention, mask))

    def _diverged(self, epoch: int, what: str, optimiser: torch.optim.Optimizer | None = None) -> DivergedError:
        rate = self.section.learning_rate
        now = "" if optimiser is None else f" at learning rate {optimiser.param_groups[0]['lr']:.3g}"
        reduced = "" if self.compute.gradient_precision == "fp32" else ", or `compute.gradient_precision: fp32`"
        return DivergedError(
            f"epoch {epoch}: {what}{now}; training has diverged and was stopped. `training.learning_rate` is {rate:g}: "
            f"try {min(rate / 10, DEFAULT_RATE):.0e}, more `training.warmup_epochs` (now "
            f"{self.section.warmup_epochs:g}){reduced}, and train again"
        )

    def _validate(self, slides: Sequence[LabelledSlide]) -> Figures:
        """Loss and AUC of slides with the network to keep."""
        return validate(
            self.result,
            [slide.tiles for slide in slides],
            [slide.truths for slide in slides],
            memory_size=self.memory_size,
            compute=self.compute,
            limit=self.limit,
        )
