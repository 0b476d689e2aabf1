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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsi_ips.config import ComputeSection, PlannedTraining, TrainingSection
from wsi_ips.config.planned import WARM_START_TILES
from wsi_ips.errors import DivergedError, ScoresError
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.pooling import selection_weights
from wsi_ips.model.scan_encoders import scan_dtype
from wsi_ips.model.tasks import label_totals, share_right, task_loss, task_losses_each, truth_tensors
from wsi_ips.scanning import ChunkLimit, Winners
from wsi_ips.tiles import read_tiles
from wsi_ips.training.amp import ReducedPrecision
from wsi_ips.training.average import averaged
from wsi_ips.training.choosing import Kept, LabelledSlide, TileChoice
from wsi_ips.training.gradient import RandomState, StepGradient
from wsi_ips.training.record import TILES_COMPARED, EpochRecord, Meter, attention_entropy, waited
from wsi_ips.training.resume import Position, StateFile, Stateful, StopRequest
from wsi_ips.training.schedule import epoch_steps, set_learning_rate, warmup_cosine
from wsi_ips.training.shares import StepTable, among_all, no_slides
from wsi_ips.training.tile_loss import known_slides, tile_loss
from wsi_ips.training.validation import Figures, require_validation, validate
from wsi_ips.training.weights import task_weights
from wsi_ips.training.world import World

GRADIENT_NORM = 1.0
DEFAULT_RATE = float(TrainingSection.model_fields["learning_rate"].default)
START_SLIDES, START_TILES = 16, 256


class LossParts(NamedTuple):
    """Loss of some slides, a scalar; their class logits, (B, C); entropy of their attention, (B,)."""

    loss: Tensor
    logits: Tensor
    entropy: Tensor


LossOfPart = Callable[[list[Tensor], Tensor, Tensor, list[int] | None], LossParts]
"""(truths, embeddings (B, K, D), mask (B, K), slides that count or None for all) -> loss of a part of a step."""


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
    world
        The processes that train together; None trains alone.
    started
        The network comes from an earlier training: its embeddings are not standardised anew.
    """

    def __init__(
        self,
        net: IpsNet,
        *,
        memory_size: int,
        section: PlannedTraining,
        compute: ComputeSection,
        seed: int,
        device: torch.device,
        on_slides: Callable[[int], None] = lambda _: None,
        note: Callable[[str], None] = lambda _: None,
        world: World | None = None,
        started: bool = False,
    ) -> None:
        self.world = world or World(device)
        self.stop, self._all_stop = StopRequest(), False
        self.net, self.memory_size, self.section, self.compute = net, memory_size, section, compute
        self.seed, self.device, self.on_slides = abs(seed), device, on_slides
        self.limit = ChunkLimit(compute.chunk_size, note)
        self.started = started
        self.gradient = StepGradient(
            compute.gradient, micro_batch=compute.micro_batch, budget_gb=compute.gpu_memory_gb, note=note
        )
        self.average = averaged(net, section.weight_average) if section.weight_average else None
        self.precision = ReducedPrecision(
            device, scan_dtype(compute.gradient_precision, device, key="compute.gradient_precision")
        )
        self.choice = TileChoice(
            section, compute, memory_size=memory_size, seed=self.seed, device=device, limit=self.limit, world=self.world
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

        Of several processes the first alone calls ``on_epoch`` and ``on_resume`` and writes the state.

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
            Asked after every step; one process that is asked stops all.

        Raises
        ------
        TrainingError
            A task whose training slides are all alike, or no validation slides for what needs them.
        DivergedError
            A loss, gradient or score that is not finite; the weights are those of the step before.
        KeyboardInterrupt
            It was asked to stop; the state is saved.
        """
        section, world = self.section, self.world
        self.stop = stop or StopRequest()
        world.attempt(lambda: require_validation(section, [slide.truths for slide in val], self.net.tasks))
        weights = world.attempt(lambda: self._class_weights(train)) or []
        world.wait()
        optimiser = torch.optim.AdamW(self.net.parameter_groups(section.weight_decay), lr=section.learning_rate)
        also: dict[str, Stateful] = {"precision": self.precision, "selections": self.choice.last}
        if self.average is not None:
            also["average"] = self.average
        position = self._resumed(state, optimiser, also)
        if position is None:
            position = Position()
            if not self.started:
                with world.ahead() as is_first:
                    if is_first:
                        self._start_encoder(train)
        elif world.is_first:
            on_resume(position.history)
        world.align(self.net)
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
                stopping = self.stop.asked if world.is_alone else self._all_stop
                self._save(state, optimiser, position, also, at_once=stopping)
                if stopping:
                    world.wait()  # nobody leaves before the state is there
                    raise KeyboardInterrupt
            figures = self._validate(val) if val and self._validates(position.epoch) else None
            record = self._record(position, len(train), figures, section.learning_rate * rate(position.total), began)
            if world.is_first:
                on_epoch(record)
            position = position.after(record, time.monotonic() - began)
            self._save(state, optimiser, position, also)

    def _resumed(
        self, state: StateFile | None, optimiser: torch.optim.Optimizer, also: Mapping[str, Stateful]
    ) -> Position | None:
        """The position of a training to go on with, which all processes hear of from the first."""
        if state is None:
            return None
        with self.world.file_of_first(state.path) as path:
            return state.load(self.net, optimiser, also, path=path)

    def _save(
        self,
        state: StateFile | None,
        optimiser: torch.optim.Optimizer,
        position: Position,
        also: Mapping[str, Stateful],
        *,
        at_once: bool = False,
    ) -> None:
        if state and self.world.is_first and (at_once or state.is_due):
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
        parts = [slice(start, min(start + at_once, len(batch))) for start in range(0, len(batch), at_once)]
        truths = [truth.to(self.device) for truth in truth_tensors([slide.truths for slide in batch], tasks)]
        # A part's loss is divided by the labels of the whole step, so that gradients add up to those of the step.
        is_whole = len(parts) == 1 and self.world.is_alone
        totals = None if is_whole else label_totals(truths, tasks, weights)
        loss_of = partial(self._loss, epoch, weights, totals, known_slides(truths, tasks))
        optimiser.zero_grad(set_to_none=True)
        width = min(self.memory_size, TILES_COMPARED)
        table = StepTable(len(batch), classes=sum(task.width for task in tasks), width=width)
        try:
            for part in parts:
                self._learn(batch[part], epoch, loss_of, table.rows(part))
            self.world.attempt(partial(self._require_finite, table, epoch, optimiser))
            sums = self.world.sum_step(list(self.net.parameters()), table.figures, stop=self.stop.asked)
        except ScoresError as error:
            raise self._diverged(epoch, "attention scores are not finite") from error
        table.take(sums.figures)
        self._all_stop = sums.stop
        self.precision.unscale(optimiser)
        norm = float(torch.nn.utils.clip_grad_norm_(self.net.parameters(), GRADIENT_NORM))
        if math.isfinite(norm):
            self.meter.add("gradient_norm", norm)
        elif not self.precision.scales:
            raise self._diverged(epoch, f"the gradient is {norm}", optimiser)
        self.precision.step(optimiser)
        if self.average is not None:
            self.average.update_parameters(self.net)
        self.choice.note(batch, table)
        return table.loss, share_right(table.logits, [truth.cpu() for truth in truths], tasks)

    def _require_finite(self, table: StepTable, epoch: int, optimiser: torch.optim.Optimizer) -> None:
        if not math.isfinite(table.loss):
            raise self._diverged(epoch, f"the loss is {table.loss}", optimiser)

    def _learn(self, batch: Sequence[LabelledSlide], epoch: int, loss_of: LossOfPart, table: StepTable) -> None:
        """Add the gradient of some slides of a step, of those that are this process's own, and fill their rows."""
        own = self.choice.deal(batch, epoch).owned(self.world.rank)
        kept = self.choice.kept(self.net, batch, epoch, table)
        self.world.attempt(lambda: self._add_gradient(batch, own, kept or [], epoch, loss_of, table))

    def _add_gradient(
        self,
        batch: Sequence[LabelledSlide],
        own: list[int],
        kept: Sequence[Kept],
        epoch: int,
        loss_of: LossOfPart,
        table: StepTable,
    ) -> None:
        self.net.train()
        slides = [batch[number] for number in own]
        truths = [t.to(self.device) for t in truth_tensors([slide.truths for slide in batch], self.net.tasks)]
        counts = [self.choice.kept_count(slide, epoch) for slide in batch]
        state = RandomState(self.device)
        found: LossParts

        def scaled(embeddings: Tensor, mask: Tensor) -> Tensor:
            nonlocal found, state
            with self.precision.full():
                if self.world.is_alone:
                    found = loss_of(truths, embeddings.float(), mask, None)
                else:
                    state.restore()  # whatever the encoder drew for the own slides
                    found = loss_of(truths, *among_all(embeddings.float(), own, counts), own)
                    state = RandomState(self.device)
                return self.precision.scale(found.loss)

        with self.meter.clock("gradient"), self.precision.encoder():
            if own:
                winners = Winners.of(self.net, [slide.tiles for slide in slides], kept)
                self.gradient(self.net, winners, self.choice.prepare(slides, epoch), scaled)
            else:
                with torch.no_grad():  # draws the random numbers that the others draw
                    scaled(*no_slides(self.net))
            if not self.world.is_alone:
                state.restore()
            table.add(own, loss=found.loss, logits=found.logits, entropy=found.entropy)

    def _loss(
        self,
        epoch: int,
        weights: Sequence[Tensor],
        totals: Sequence[Tensor] | None,
        known: Tensor,
        truths: list[Tensor],
        embeddings: Tensor,
        mask: Tensor,
        own: list[int] | None,
    ) -> LossParts:
        """Loss of some slides of a step (all, or the own ones), of the whole slide and of each kept tile alone."""
        tasks = self.net.tasks
        logits = self.net(embeddings, mask)  # (B, C)
        counted = (logits, truths) if own is None else (logits[own], [truth[own] for truth in truths])
        loss = task_loss(*counted, tasks, weights=weights, totals=totals)
        if self.section.tile_loss:
            each = partial(task_losses_each, tasks=tasks, weights=weights)
            is_warm = epoch <= self.section.warm_start_epochs
            loss = loss + self.section.tile_loss * tile_loss(
                self.net, embeddings, mask, truths, each, evenly=is_warm, known=known, own=own
            )
        with torch.no_grad():
            attention = selection_weights(self.net.pooling.logits(embeddings), mask)  # (B, K, T)
        return LossParts(loss, logits, attention_entropy(attention, mask))

    def _diverged(self, epoch: int, what: str, optimiser: torch.optim.Optimizer | None = None) -> DivergedError:
        rate = self.section.learning_rate
        now = "" if optimiser is None else f" at learning rate {optimiser.param_groups[0]['lr']:.3g}"
        reduced = "" if self.compute.gradient_precision == "fp32" else ", or `compute.gradient_precision: fp32`"
        error = DivergedError(
            f"epoch {epoch}: {what}{now}; training has diverged and was stopped. `training.learning_rate` is {rate:g}: "
            f"try {min(rate / 10, DEFAULT_RATE):.0e}, more `training.warmup_epochs` (now "
            f"{self.section.warmup_epochs:g}){reduced}, and train again"
        )
        error.is_told = not self.world.is_first
        return error

    def _validate(self, slides: Sequence[LabelledSlide]) -> Figures:
        """Loss and AUC of slides with the network to keep."""
        return validate(
            self.result,
            [slide.tiles for slide in slides],
            [slide.truths for slide in slides],
            memory_size=self.memory_size,
            compute=self.compute,
            limit=self.limit,
            world=self.world,
        )
