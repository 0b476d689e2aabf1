"""The training loop.

An epoch goes through the training slides in steps (:mod:`wsi_ips.training.step`), measures the validation slides, and
tells the listener. A step (Bergner et al., 2023, algorithm 1, with exact selection):

1. stream all tiles of B slides through the network in evaluation mode, keep the M best of each;
2. encode the winners again with gradient, pool them with a mask, take the loss, step the optimiser.

The first epochs may be a start phase (:mod:`wsi_ips.training.starts`), which learns from given tiles without a scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.task_losses import target_tensors
from wsi_ips.tiles.stream import read_tiles
from wsi_ips.training.loss import class_weights, guess
from wsi_ips.training.processes import Processes
from wsi_ips.training.resume import StateFile, StopRequest, TrainingState, restore_stored
from wsi_ips.training.settings import LabelledSlide, Listener, Settings
from wsi_ips.training.step import Step
from wsi_ips.training.tracking import EpochRecord, Meter
from wsi_ips.training.validation import Figures, epochs_since_best, require_validation, validate

FIRST_SLIDES, FIRST_TILES = 16, 256  # from which the encoder standardises its embeddings before the first step


class Trainer:
    """Trains one network, already on the device of ``processes``, on one cohort.

    Without ``processes`` it trains alone. Of several processes only the first calls ``on_epoch`` and ``on_resume`` of
    the listener.
    """

    def __init__(
        self, net: IpsNet, settings: Settings, *, processes: Processes | None = None, listener: Listener | None = None
    ) -> None:
        self.net, self.settings, self.listener = net, settings, listener or Listener()
        self.processes = processes or Processes(next(net.parameters()).device)
        self.step = Step(net, settings, self.processes, self.listener)

    @property
    def result(self) -> IpsNet:
        """The network to validate and keep: the one that learns, or the average of its weights."""
        if self.step.average is None:
            return self.net
        assert isinstance(self.step.average.module, IpsNet)
        return self.step.average.module

    def fit(
        self,
        train: Sequence[LabelledSlide],
        val: Sequence[LabelledSlide],
        *,
        file: StateFile | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        """Run all epochs, from where an earlier call stopped as ``file`` says (None starts afresh, saves nothing).

        Raises a :class:`KeyboardInterrupt` once the state is saved where a process was asked to ``stop``.
        """
        section = self.settings.section
        self.step.stop = stop or StopRequest()
        weights = self._class_weights(train, val)
        labels = target_tensors([slide.targets for slide in train], self.net.tasks)
        self.step.guess = guess(labels, self.net.tasks, weights, even=section.balance == "sampling")
        state = self._first_or_stored_state(train, file)
        steps = [self._steps(len(train), epoch) for epoch in range(1, section.epochs + 1)]
        rate = partial(warmup_cosine, warmup=min(section.warmup_steps, sum(steps) // 5), total=sum(steps))
        self.listener.on_slides((state.epoch - 1) * len(train))
        while state.epoch <= section.epochs and not self._is_out_of_patience(state):
            self._run_steps(state, train, weights, rate, file)
            # In the start phase nothing is selected yet, so there is nothing to choose from.
            is_validated = self.step.choice.start_of(state.epoch) is None or state.epoch == section.epochs
            figures = self._validate(val) if val and is_validated else None
            record = self._record(state, len(train), figures, section.learning_rate * rate(state.total))
            if self.processes.is_first:
                self.listener.on_epoch(record, self.result)
            state.finish_epoch(record)
            self._save(state, file)

    def _run_steps(
        self,
        state: TrainingState,
        train: Sequence[LabelledSlide],
        weights: Sequence[Tensor],
        rate: Callable[[int], float],
        file: StateFile | None,
    ) -> None:
        self.step.choice.meter = meter = Meter(state.sums)
        batches = self._batches(train, state.epoch)
        self.listener.on_slides(sum(len(batch) for batch in batches[: state.step]))
        for batch in batches[state.step :]:
            for group in state.optimiser.param_groups:
                group["lr"] = self.settings.section.learning_rate * group["rate"] * rate(state.total)
            with meter.clock("step"):
                loss, right = self.step.learn(batch, state.epoch, weights, state.optimiser)
            state.finish_step(loss * len(batch), right * len(batch))
            self.listener.on_slides(len(batch))
            stopping = self.step.stop.asked if self.processes.is_alone else self.step.all_stop
            self._save(state, file, at_once=stopping)
            if stopping:
                self.processes.gather()  # no process leaves before the state is saved
                raise KeyboardInterrupt

    def _first_or_stored_state(self, train: Sequence[LabelledSlide], file: StateFile | None) -> TrainingState:
        """Return the state to resume from, the same in all processes: that of the file, else the initial one."""
        section, processes = self.settings.section, self.processes
        groups = self.net.parameter_groups(
            section.weight_decay, trunk_rate=self.settings.trunk_rate, decay_all=section.decay_all
        )
        optimiser = torch.optim.AdamW(groups, lr=section.learning_rate)
        others: dict[str, Any] = {"precision": self.step.precision, "selections": self.step.last}
        if self.step.average is not None:
            others["average"] = self.step.average
        state = TrainingState(self.net, optimiser, others)
        if restore_stored(state, file, processes):
            if processes.is_first:
                self.listener.on_resume(state.history)
        elif not self.settings.continues:
            with processes.ahead() as is_first:
                if is_first:
                    self._standardise_embeddings(train)
        processes.align(self.net)
        return state

    @torch.no_grad()
    def _standardise_embeddings(self, slides: Sequence[LabelledSlide]) -> None:
        rng = np.random.default_rng([abs(self.settings.seed), 0])
        chosen = rng.permutation(len(slides))[:FIRST_SLIDES]
        each = max(2, FIRST_TILES // len(chosen))
        pixels = []
        for number in chosen:
            tiles = slides[number].tiles
            drawn = np.sort(rng.permutation(len(tiles.index))[:each])
            pixels.append(read_tiles(tiles.only(drawn.astype(np.int32))))
        together, encoder = torch.from_numpy(np.concatenate(pixels)), self.net.encoder.eval()

        def embed(part: slice) -> Tensor:
            return encoder.embed_raw(to_float(together[part].to(self.processes.device)))

        encoder.start(torch.cat(self.step.limit.run(len(together), embed)))

    def _class_weights(self, train: Sequence[LabelledSlide], val: Sequence[LabelledSlide]) -> list[Tensor]:
        """Check the labels; return the weights of the classes, per task."""
        section, tasks = self.settings.section, self.net.tasks

        def work() -> list[Tensor]:
            require_validation(section, [slide.targets for slide in val], tasks)
            self._batches(train, 1)  # raises where the start has nothing to learn from
            balanced = section.balance == "weights"
            known = target_tensors([slide.targets for slide in train], tasks)
            weights = [class_weights(*pair, balanced=balanced) for pair in zip(known, tasks, strict=True)]
            return [weight.to(self.processes.device) for weight in weights]

        weights = self.processes.attempt(work)
        self.processes.gather()
        return weights or []

    def _steps(self, slides: int, epoch: int) -> int:
        start = self.step.choice.start_of(epoch)
        return math.ceil(slides / self.settings.section.batch_slides) if start is None else start.steps(slides)

    def _batches(self, train: Sequence[LabelledSlide], epoch: int) -> list[list[LabelledSlide]]:
        """Return the slides of each step of an epoch."""
        start = self.step.choice.start_of(epoch)
        given = None if start is None else start.visits(train, epoch)
        if given is not None:
            return [
                [given[i] for i in part]
                for part in np.array_split(np.arange(len(given)), self._steps(len(train), epoch))
            ]
        classes, balanced = [slide.targets[0] for slide in train], self.settings.section.balance == "sampling"
        seed, steps = abs(self.settings.seed), self._steps(len(train), epoch)
        visits = epoch_steps(classes, seed=seed, epoch=epoch, steps=steps, balanced=balanced)
        return [[train[slide].visited(epoch, view) for slide, view in step] for step in visits]

    def _is_out_of_patience(self, state: TrainingState) -> bool:
        section = self.settings.section
        return section.patience is not None and epochs_since_best(state.history, section.select) >= section.patience

    def _validate(self, slides: Sequence[LabelledSlide]) -> Figures:
        return validate(self.result, slides, self.settings, processes=self.processes, limit=self.step.limit)

    def _record(self, state: TrainingState, slides: int, figures: Figures | None, learning_rate: float) -> EpochRecord:
        meter = self.step.choice.meter
        return EpochRecord(
            epoch=state.epoch,
            loss=state.loss / slides,
            accuracy=state.right / slides,
            val_loss=figures and figures.loss,
            val_auc=figures and figures.auc,
            learning_rate=learning_rate,
            gradient_norm=meter.mean("gradient_norm"),
            gradient_norm_max=meter.largest("gradient_norm"),
            attention_entropy=meter.mean("attention_entropy"),
            selection_overlap=meter.mean("selection_overlap"),
            seconds=round(state.seconds, 1),
            cost=meter.cost(self.processes.device),
            kept_in_outlines=meter.mean("kept_in_outlines"),
            guess_loss=meter.mean("guess_loss"),
            selection_done=self._selection_done(slides, state.epoch),
        )

    def _selection_done(self, slides: int, epoch: int) -> float | None:
        """Return the share of all steps with selection that are done after an epoch; None in the start phase."""
        epochs = range(1, self.settings.section.epochs + 1)
        steps = {n: self._steps(slides, n) for n in epochs if self.step.choice.start_of(n) is None}
        return sum(count for n, count in steps.items() if n <= epoch) / sum(steps.values()) if epoch in steps else None

    def _save(self, state: TrainingState, file: StateFile | None, *, at_once: bool = False) -> None:
        if file and self.processes.is_first and (at_once or file.is_due):
            file.save(state)


def warmup_cosine(step: int, *, warmup: int, total: int) -> float:
    """Return the factor of the learning rate: linear to 1 over ``warmup`` steps, then cosine to 0.001 at the last.

    ``step`` counts from 0, the published code from 1; the factors of a training of ``total`` steps are the same.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step + 1 - warmup) / max(1, total - warmup)
    return 0.001 + 0.999 * (1 + math.cos(math.pi * min(1.0, progress))) / 2


class Visit(NamedTuple):
    """One use of a slide in an epoch: its number among the training slides, and how often it was used before."""

    slide: int
    view: int = 0


def epoch_order(groups: Sequence[Hashable | None], *, seed: int, epoch: int, balanced: bool) -> list[Visit]:
    """Return the visits of an epoch, as many as there are slides; ``groups`` are their classes, None where unknown.

    ``balanced`` spreads the visits evenly over the classes. Slides of a rare class come several times, each as often
    as the others of its class or once more; some slides of a frequent class are left out, other ones in each epoch.
    Slides of unknown class come once. If False, each slide comes once.
    """
    rng = np.random.default_rng([seed, epoch])
    if not balanced:
        return [Visit(int(slide)) for slide in rng.permutation(len(groups))]
    members: dict[Hashable, list[int]] = {}
    for slide, group in enumerate(groups):
        if group is not None:
            members.setdefault(group, []).append(slide)
    visits = [Visit(slide) for slide, group in enumerate(groups) if group is None]
    extra = rng.permutation(len(members))  # the classes that get one more visit where the division has a remainder
    each, remainder = divmod(len(groups) - len(visits), max(1, len(members)))
    for rank, slides in zip(extra, members.values(), strict=True):
        count = each + (rank < remainder)
        rounds = -(-count // len(slides))
        turns = [Visit(int(slide), view) for view in range(rounds) for slide in rng.permutation(slides)]
        visits += turns[:count]
    return [visits[i] for i in rng.permutation(len(visits))]


def epoch_steps(
    groups: Sequence[Hashable | None], *, seed: int, epoch: int, steps: int, balanced: bool
) -> list[list[Visit]]:
    """Return the visits of :func:`epoch_order`, split into the steps of the epoch; the first steps get one more."""
    order = epoch_order(groups, seed=seed, epoch=epoch, balanced=balanced)
    return [[order[i] for i in part] for part in np.array_split(np.arange(len(order)), steps)]
