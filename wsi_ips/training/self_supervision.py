"""Self-supervision: an encoder learns from the tiles of a cohort, without labels, before it learns from slide labels.

Two views of every tile (:mod:`wsi_ips.training.tile_views`) are embedded; the loss asks that the views of one tile
agree and that different tiles stay apart. A step learns from a few groups of tiles. The loss of a group sees no other
group, so several processes that share out the groups of a step end with the weights that one process ends with.

Shapes: n tiles of a group, D width of an embedding, P width of a projection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.config import AugmentSection, ComputeSection
from wsi_ips.errors import DivergedError, RecipeError, TrainingError
from wsi_ips.model.encoder import Encoder, StoredTrunk
from wsi_ips.model.net import to_float
from wsi_ips.model.scan_encoders import scan_dtype
from wsi_ips.scanning import open_stream
from wsi_ips.tiles.feature_store import FeatureTiles
from wsi_ips.tiles.stream import PatchChunk, SlideTiles, read_tiles
from wsi_ips.training.gradient import StepGradient
from wsi_ips.training.loop import warmup_cosine
from wsi_ips.training.processes import Processes
from wsi_ips.training.resume import StateFile, StopRequest, TrainingState, restore_stored
from wsi_ips.training.step import MixedPrecision
from wsi_ips.training.tile_batches import TileBatches
from wsi_ips.training.tile_views import VIEWS, two_views, view_pixels
from wsi_ips.training.tracking import Meter

GROUPS, GROUP_TILES = 2, 64  # groups of a step, and tiles of each
TILES_PER_STEP = GROUPS * GROUP_TILES * VIEWS  # patches that the encoder learns from in a step
SLIDE_TILES = 8  # tiles of one slide in a row
EPOCH_STEPS = 100  # steps between two reports
HIDDEN, PROJECTED = 512, 128  # widths of the head
TEMPERATURE = 0.2  # of the similarities in the loss
WARMUP = 0.05  # share of the steps in which the learning rate rises
CHANCE = 0.95  # of the loss of a guess; above it nothing was learned
COLLAPSED = 0.1  # a spread below this means that all tiles look the same


@dataclass(frozen=True)
class SelfSupervision:
    """Settings of a self-supervision."""

    steps: int  # optimiser steps
    seed: int  # of tiles, views and the initial weights of the head
    compute: ComputeSection
    augment: AugmentSection = field(default_factory=AugmentSection)
    groups: int = GROUPS  # of a step
    group_tiles: int = GROUP_TILES
    smallest_view: float = 0.4  # smallest share of a tile's area that a view shows
    learning_rate: float = 1e-3  # peak, of AdamW
    micro_batch: int = 64  # patches at a time where the activations of all exceed `compute.gpu_memory_gb`


@dataclass(frozen=True)
class EncoderRecord:
    """Figures of an epoch: of :data:`EPOCH_STEPS` steps, the last epoch may be shorter."""

    epoch: int  # counted from 1
    steps: int  # done so far
    loss: float  # mean
    spread: float  # of projections, see :func:`spread`
    seconds: float  # spent so far, in all calls

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Build a record from the result of ``dataclasses.asdict``."""
        return cls(**stored)


class EncoderListener:
    """Progress listener. Subclass it and override what you need; this one ignores everything."""

    def on_steps(self, count: int) -> None:
        """Called with the number of steps that are done since the last call."""

    def on_epoch(self, record: EncoderRecord) -> None:
        """Called after each epoch."""

    def on_resume(self, history: Sequence[EncoderRecord]) -> None:
        """Called when the training resumes after these epochs."""

    def note(self, text: str) -> None:
        """Called with a message when the gradient is split into passes or memory runs out."""


class EncoderState(TrainingState):
    """Everything that a self-supervision needs to resume."""

    record = EncoderRecord


class Learner(nn.Module):
    """An encoder, and the head that maps its embeddings to what the loss compares, (n, D) to (n, P)."""

    def __init__(self, encoder: Encoder, *, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = self.build_head()
        self.head.to(encoder.mean.device)

    def build_head(self) -> nn.Module:
        """Return a new head; its batch norm sees the tiles of one group."""
        return nn.Sequential(
            nn.Linear(self.encoder.width, HIDDEN),
            nn.BatchNorm1d(HIDDEN, track_running_stats=False),
            nn.ReLU(),
            nn.Linear(HIDDEN, PROJECTED),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Project the embeddings of the two views of a group, (2, n, D) to (2, n, P)."""
        out: Tensor = self.head(embeddings.flatten(0, 1)).unflatten(0, (2, -1))
        return out


class EncoderTrainer:
    """Trains an encoder in place, already on the device of ``processes``; without ``processes`` it trains alone.

    Of several processes only the first calls ``on_epoch`` and ``on_resume`` of the listener.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: SelfSupervision,
        *,
        processes: Processes | None = None,
        listener: EncoderListener | None = None,
    ) -> None:
        require_trainable(encoder)
        self.settings, self.listener = settings, listener or EncoderListener()
        self.processes = processes or Processes(encoder.mean.device)
        self.learner = Learner(encoder, seed=settings.seed)
        self.stop = StopRequest()
        compute = settings.compute
        self.gradient = StepGradient(
            "auto", micro_batch=settings.micro_batch, budget_gb=compute.gpu_memory_gb, note=self.listener.note
        )
        dtype = scan_dtype(compute.gradient_precision, self.processes.device, key="compute.gradient_precision")
        self.precision = MixedPrecision(self.processes.device, dtype)

    def fit(
        self, slides: Sequence[SlideTiles], *, file: StateFile | None = None, stop: StopRequest | None = None
    ) -> list[EncoderRecord]:
        """Run all steps, from where an earlier call stopped as ``file`` says; return the figures of each epoch.

        Leaves the encoder in evaluation mode. Raises a :class:`KeyboardInterrupt` once the state is saved where a
        process was asked to ``stop``, and a :class:`TrainingError` where all tiles come to look the same.
        """
        self.stop = stop or StopRequest()
        batches = self.processes.attempt(lambda: self._batches(slides))
        self.processes.gather()  # raises in all processes what was wrong in one
        assert batches is not None
        state = self._first_or_stored_state(batches, file)
        self.listener.on_steps(state.total)
        while state.total < self.settings.steps:
            self._run_steps(state, batches, file)
            record = self._record(state)
            if self.processes.is_first:
                self.listener.on_epoch(record)
            self._require_spread(record)
            state.finish_epoch(record)
            self._save(state, file, at_once=state.total == self.settings.steps)
        self._warn_of_chance(state.history[-1])
        self.learner.encoder.eval()
        return list(state.history)

    def _batches(self, slides: Sequence[SlideTiles]) -> TileBatches:
        if any(isinstance(slide, FeatureTiles) for slide in slides):
            raise RecipeError(
                "self-supervision learns from pixels, not from stored features: set `model.input: pixels`"
            )
        return TileBatches(
            slides, group_tiles=self.settings.group_tiles, slide_tiles=SLIDE_TILES, seed=self.settings.seed
        )

    def _run_steps(self, state: TrainingState, batches: TileBatches, file: StateFile | None) -> None:
        """Run the remaining steps of an epoch."""
        settings, meter = self.settings, Meter(state.sums)
        rate = partial(warmup_cosine, warmup=math.ceil(WARMUP * settings.steps), total=settings.steps)
        steps = range(state.total, min(settings.steps, state.epoch * EPOCH_STEPS))
        requests = [request for step in steps for group in self._own(step) for request in batches.requests(group)]
        with self._stream(requests) as chunks:
            for step in steps:
                for group in state.optimiser.param_groups:
                    group["lr"] = settings.learning_rate * rate(step)
                stopping = self._learn(state, batches, chunks, meter)
                state.finish_step(0.0, 0.0)
                self.listener.on_steps(1)
                self._save(state, file, at_once=stopping)
                if stopping:
                    self.processes.gather()  # no process leaves before the state is saved
                    raise KeyboardInterrupt

    @contextmanager
    def _stream(self, requests: Sequence[SlideTiles]) -> Iterator[Iterator[PatchChunk]]:
        """Yield the groups of tiles; none where this process has no group, or was stopped after the last step."""
        if not requests:
            yield iter(())
            return
        compute = self.settings.compute.model_copy(update={"chunk_size": self.settings.group_tiles})
        with open_stream(requests, compute, self.processes.device) as stream:
            yield iter(stream)

    def _learn(self, state: TrainingState, batches: TileBatches, chunks: Iterator[PatchChunk], meter: Meter) -> bool:
        """Learn from the groups of a step; return whether any process was asked to stop."""
        self.learner.train()
        state.optimiser.zero_grad(set_to_none=True)

        def work() -> Tensor:
            found = [self._add_gradient(next(chunks), group, batches) for group in self._own(state.total)]
            return torch.tensor(found).sum(0) / self.settings.groups if found else torch.zeros(2)

        own = self.processes.attempt(work)
        parameters = list(self.learner.parameters())
        figures, stopping = self.processes.sum_step(
            parameters, torch.zeros(2) if own is None else own, stop=self.stop.asked
        )
        loss, width = figures.tolist()
        if not math.isfinite(loss):
            raise self._told(
                DivergedError(
                    f"self-supervision has diverged in step {state.total + 1}: the loss is {loss}; try "
                    "`compute.gradient_precision: fp32`, or another `training.start`"
                )
            )
        self.precision.step(state.optimiser)
        self.precision.update()
        meter.add("loss", loss)
        meter.add("spread", width)
        return stopping

    def _add_gradient(self, chunk: PatchChunk, group: int, batches: TileBatches) -> tuple[float, float]:
        """Add the gradient of one group; return its loss and the spread of its embeddings."""
        settings, found = self.settings, 0.0
        prepare = view_pixels(
            batches.slide_ids,
            seed=settings.seed,
            group=group,
            strengths=settings.augment,
            smallest=settings.smallest_view,
            device=self.processes.device,
        )

        def loss_of(embeddings: Tensor, _: Tensor) -> Tensor:
            nonlocal found
            with self.precision.full():
                first, second = self.learner(embeddings.float())  # (n, P) each
                found = spread(torch.cat([first, second]).detach())
                return self.precision.scale(view_loss(first, second) / settings.groups)

        with self.precision.encoder():
            loss = self.gradient(self.learner, two_views(chunk, len(batches.slide_ids)), prepare, loss_of)
        return settings.groups * float(loss) / float(self.precision.get_scale()), found

    def _first_or_stored_state(self, batches: TileBatches, file: StateFile | None) -> TrainingState:
        """Return the state to resume from, the same in all processes: that of the file, else the initial one."""
        learner, processes = self.learner, self.processes
        learned = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(learned, lr=self.settings.learning_rate, weight_decay=0.0)
        state = EncoderState(learner, optimiser, {"precision": self.precision})
        if restore_stored(state, file, processes):
            if processes.is_first:
                self.listener.on_resume(state.history)
        else:
            with processes.ahead() as is_first:
                if is_first:
                    self._standardise_embeddings(batches)
        processes.align(learner)
        return state

    @torch.no_grad()
    def _standardise_embeddings(self, batches: TileBatches) -> None:
        """Start the encoder's scale and shift from the first groups."""
        requests = [request for group in range(self.settings.groups) for request in batches.requests(group)]
        pixels = torch.from_numpy(np.concatenate([read_tiles(request) for request in requests]))
        self.learner.encoder.eval().start(to_float(pixels.to(self.processes.device)))

    def _own(self, step: int) -> list[int]:
        """Return the groups of a step that this process learns from."""
        groups, size, rank = self.settings.groups, self.processes.size, self.processes.rank
        return [group for group in range(step * groups, (step + 1) * groups) if group % size == rank]

    def _record(self, state: TrainingState) -> EncoderRecord:
        meter = Meter(state.sums)
        loss, width = meter.mean("loss"), meter.mean("spread")
        assert loss is not None
        assert width is not None
        return EncoderRecord(state.epoch, state.total, loss, width, round(state.seconds, 1))

    def _require_spread(self, record: EncoderRecord) -> None:
        if record.spread < COLLAPSED:
            raise self._told(
                TrainingError(
                    f"self-supervision: after {record.steps} steps the encoder maps all tiles to nearly the same "
                    f"embedding (spread {record.spread:.3f}, at most about 1), so it cannot tell them apart. Check "
                    "that the tiles differ (`wsi-ips status --sheet`); if they do, try another `seed`, "
                    "stronger `training.augment`, or another `training.start`"
                )
            )

    def _warn_of_chance(self, record: EncoderRecord) -> None:
        guess = math.log(2 * self.settings.group_tiles - 1)
        if record.loss > CHANCE * guess and self.processes.is_first:
            self.listener.note(
                f"self-supervision learned next to nothing: its loss is {record.loss:.2f}, and {guess:.2f} is that of "
                "a guess. Take more steps, look whether the tiles differ, or choose another `training.start`"
            )

    def _told(self, error: TrainingError) -> TrainingError:
        error.is_told = not self.processes.is_first  # all processes raise it, one prints it
        return error

    def _save(self, state: TrainingState, file: StateFile | None, *, at_once: bool) -> None:
        if file and self.processes.is_first and (at_once or file.is_due):
            file.save(state)


def require_trainable(encoder: Encoder) -> None:
    """Raise a `RecipeError` where an encoder has no weights that could learn."""
    if isinstance(encoder.trunk, StoredTrunk):
        raise RecipeError(
            "self-supervision trains an encoder on pixels, but the encoder of imported features is not here: set "
            "`model.input: pixels` and leave `features.imported` out"
        )
    if not any(parameter.requires_grad for parameter in encoder.trunk.parameters()):
        raise RecipeError(
            "key `model.freeze`: self-supervision trains the encoder, and all of it is frozen; set `model.freeze` to "
            "`none` or a number of stages"
        )


def spread(projections: Tensor) -> float:
    """Return how much projections, (n, P), differ: 0 if all are equal, about 1 if they point in all directions.

    The standard deviation of projections of length 1, times the square root of P (Chen and He, 2021, section 4.1).
    """
    return float(functional.normalize(projections).std(0).mean()) * math.sqrt(projections.shape[1])


def view_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the loss of the projections of two views, (n, P) each: each view must find the other one of its tile.

    NT-Xent, a cross-entropy over the cosines with the 2n - 1 other views (Chen et al., 2020, equation 1). Equal to that
    of the libraries lightly and pytorch-metric-learning (DECISIONS).
    """
    views = functional.normalize(torch.cat([first, second]))  # (2n, P)
    logits = (views @ views.T / TEMPERATURE).fill_diagonal_(-math.inf)  # (2n, 2n), none with itself
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return functional.cross_entropy(logits, partner)
