"""One step of a training: scan without gradient, learn from the winners with gradient, update the weights.

Shapes: B slides of a step, b own slides of this process, K ≤ M kept tiles (padded to the longest, masked), C classes of
all tasks, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from wsi_ips.config import TrainingSection
from wsi_ips.errors import DivergedError, ScoresError, TrainingError
from wsi_ips.evaluation.localisation import TUMOUR_TILE
from wsi_ips.model.net import IpsNet
from wsi_ips.model.scan_encoders import scan_dtype
from wsi_ips.model.task_losses import is_known, share_right, target_tensors, task_loss
from wsi_ips.scanning import ChunkLimit, Winners
from wsi_ips.training.gradient import RandomState, StepGradient, uses_batch_statistics
from wsi_ips.training.loss import SlideLosses, StepLoss
from wsi_ips.training.processes import Processes
from wsi_ips.training.resume import StopRequest
from wsi_ips.training.settings import LabelledSlide, Listener, Settings
from wsi_ips.training.tile_choice import Kept, TileChoice
from wsi_ips.training.tracking import TILES_COMPARED, LastSelection

DEFAULT_RATE = float(TrainingSection.model_fields["learning_rate"].default)


class StepFigures:
    """Figures of the slides of a step, a row per slide; each process fills its own rows, the sum is the whole.

    Columns of ``table``, float32, (B, 1 + C + 1 + W): loss (that of slides learned together is in the row of the
    first), class logits, attention entropy, and the best tiles plus 1, best first, 0 for none (exact below 2^24).
    """

    def __init__(self, table: Tensor, classes: int) -> None:
        self.table = table
        widths = [1, classes, 1, table.shape[1] - classes - 2]
        self._loss, self.logits, entropy, self._best = table.split(widths, dim=1)  # views; logits (B, C)
        self.entropy = entropy[:, 0]  # (B,)

    @classmethod
    def empty(cls, slides: int, *, classes: int, width: int) -> StepFigures:
        """Return a table of zeros; ``width`` is W, the number of best tiles."""
        return cls(torch.zeros(slides, 2 + classes + width), classes)

    @property
    def loss(self) -> float:
        """Sum of the losses."""
        return float(sum(self._loss[:, 0].tolist()))

    def add(self, own: Sequence[int], found: SlideLosses, best: Mapping[int, NDArray[np.integer]]) -> None:
        """Fill the rows of the own slides; logits and entropy in ``found`` are those of all slides."""
        if own:
            rows = torch.tensor(own)
            self._loss[own[0], 0] += float(found.of_answers)
            self.logits[rows] = found.logits.detach().float().cpu()[rows]
            self.entropy[rows] = found.entropy.detach().float().cpu()[rows]
        for slide, tiles in best.items():
            shown = tiles[: self._best.shape[1]]
            self._best[slide, : len(shown)] = torch.from_numpy(shown + 1).float()

    def best(self, slide: int) -> NDArray[np.int64]:
        """Return the best tiles of a slide, best first."""
        row: NDArray[np.float32] = self._best[slide].numpy()
        return row[row > 0].astype(np.int64) - 1


class Step:
    """Runs the steps of a training."""

    def __init__(self, net: IpsNet, settings: Settings, processes: Processes, listener: Listener) -> None:
        section, compute = settings.section, settings.compute
        self.net, self.settings, self.processes = net, settings, processes
        self._require_whole_steps()
        self.limit = ChunkLimit(compute.chunk_size, listener.note)
        self.choice = TileChoice(settings, processes, self.limit)
        self.last = LastSelection(settings.memory_size)
        self.gradient = StepGradient(
            settings.gradient, micro_batch=settings.micro_batch, budget_gb=compute.gpu_memory_gb, note=listener.note
        )
        self.average = averaged(net, section.weight_average) if section.weight_average else None
        dtype = scan_dtype(compute.gradient_precision, processes.device, key="compute.gradient_precision")
        self.precision = MixedPrecision(processes.device, dtype)
        self.guess: Tensor | None = None  # logits of guessing, (C,), whose loss is recorded beside that of the network
        self.stop, self.all_stop = StopRequest(), False  # of this process; whether any was asked, known after a step

    def _require_whole_steps(self) -> None:
        in_parts = self.settings.compute.slides_at_once is not None or not self.processes.is_alone
        if in_parts and uses_batch_statistics(self.net.encoder.train()):
            raise TrainingError(
                "`model.norm: batch` takes its statistics from all kept tiles of a step: train in one process and "
                "leave `compute.slides_at_once` out, or set `model.norm: auto`"
            )

    def learn(
        self, batch: Sequence[LabelledSlide], epoch: int, weights: Sequence[Tensor], optimiser: torch.optim.Optimizer
    ) -> tuple[float, float]:
        """Learn from some slides; return their mean loss and the share of correct answers.

        Raises :class:`DivergedError` where a loss, gradient or score is not finite; the weights are those before.
        """
        tasks, processes = self.net.tasks, self.processes
        batch = [self.choice.placed(slide, epoch) for slide in batch]
        at_once = self.settings.compute.slides_at_once or len(batch)
        parts = [slice(start, min(start + at_once, len(batch))) for start in range(0, len(batch), at_once)]
        targets = [truth.to(processes.device) for truth in target_tensors([slide.targets for slide in batch], tasks)]
        start = self.choice.start_of(epoch)
        draws_known = start is not None and start.known_only
        if draws_known:  # in equal numbers of each class
            weights = [torch.ones_like(weight) for weight in weights]
        loss = StepLoss(
            weights,
            # A part is divided by the labels of the whole step, so that gradients add up to that of the step.
            is_known(targets, tasks).sum(0).clamp_min(1),
            self.settings.section.tile_loss,
            evenly=start is not None,
            drawn=sum(self.choice.kept_count(slide, epoch) for slide in batch) if draws_known else 0,
        )
        optimiser.zero_grad(set_to_none=True)
        classes, width = sum(task.width for task in tasks), min(self.settings.memory_size, TILES_COMPARED)
        figures = StepFigures.empty(len(batch), classes=classes, width=width)
        try:
            for part in parts:
                self._learn_part(batch[part], epoch, loss, StepFigures(figures.table[part], classes))
            processes.attempt(lambda: self._require_finite(figures.loss, epoch, optimiser))
            table, self.all_stop = processes.sum_step([*self.net.parameters()], figures.table, stop=self.stop.asked)
        except ScoresError as error:
            raise self._diverged(epoch, "attention scores are not finite") from error
        self._update(epoch, optimiser)
        summed = StepFigures(table, classes)
        self._count(batch, summed)
        if self.guess is not None:
            self._count_guess(targets, weights)
        return summed.loss, share_right(summed.logits, [truth.cpu() for truth in targets], tasks)

    def _learn_part(self, batch: Sequence[LabelledSlide], epoch: int, loss: StepLoss, figures: StepFigures) -> None:
        best: dict[int, NDArray[np.int64]] = {}
        kept = self.choice.kept(self.net, batch, epoch, best)

        def work() -> None:
            own = self.choice.division(batch, epoch).owned(self.processes.rank)
            with self.choice.meter.clock("gradient"):
                found = self._add_gradient(batch, own, kept or [], epoch, loss)
            figures.add(own, found, best)

        self.processes.attempt(work)

    def _add_gradient(
        self, batch: Sequence[LabelledSlide], own: list[int], kept: Sequence[Kept], epoch: int, loss: StepLoss
    ) -> SlideLosses:
        # Several processes must draw the same dropout for the slides of the step, whatever their encoders drew for the
        # own slides. So each starts the pooling from the same random state (`before`) and ends with the state that the
        # pooling left (`after`).
        self.net.train()
        targets = target_tensors([slide.targets for slide in batch], self.net.tasks)
        targets = [truth.to(self.processes.device) for truth in targets]
        counts = [self.choice.kept_count(slide, epoch) for slide in batch]
        classes = sum(task.width for task in self.net.tasks)
        truth = truth_table(batch, dict(zip(own, kept, strict=False)), max(counts), classes)
        loss = replace(loss, truth=None if truth is None else truth.to(self.processes.device))
        before = after = RandomState(self.processes.device)
        found: SlideLosses

        def scaled(embeddings: Tensor, mask: Tensor) -> Tensor:
            nonlocal found, after
            with self.precision.full():
                if self.processes.is_alone:
                    found = loss(self.net, targets, embeddings.float(), mask)
                else:
                    before.restore()
                    found = loss(self.net, targets, *among_all(embeddings.float(), own, counts), own)
                    after = RandomState(self.processes.device)
                return self.precision.scale(found.loss)

        with self.precision.encoder():
            if own:
                slides = [batch[number] for number in own]
                winners = Winners.of(self.net, [slide.tiles for slide in slides], kept)
                self.gradient(self.net, winners, self.choice.prepare(slides, epoch), scaled)
            else:  # draw the random numbers that the others draw
                with torch.no_grad():
                    device = self.processes.device
                    nothing = torch.zeros(0, 1, self.net.encoder.width, device=device)  # (0, 1, D)
                    scaled(nothing, torch.zeros(0, 1, dtype=torch.bool, device=device))
            if not self.processes.is_alone:
                after.restore()
        return found

    def _update(self, epoch: int, optimiser: torch.optim.Optimizer) -> None:
        """Clip the gradient, step the optimiser and the average of the weights."""
        self.precision.unscale_(optimiser)
        longest = self.settings.section.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.net.parameters(), longest))
        if math.isfinite(norm):
            self.choice.meter.add("gradient_norm", norm)
        elif not self.precision.is_enabled():  # else this step is skipped
            raise self._diverged(epoch, f"the gradient is {norm}", optimiser)
        self.precision.step(optimiser)
        self.precision.update()
        if self.average is not None:
            self.average.update_parameters(self.net)

    def _count(self, batch: Sequence[LabelledSlide], figures: StepFigures) -> None:
        for number, slide in enumerate(batch):
            entropy, best = float(figures.entropy[number]), figures.best(number)
            if math.isfinite(entropy):  # it is not where one tile was kept
                self.choice.meter.add("attention_entropy", entropy)
            overlap = self.last.overlap(slide.slide_id, best) if len(best) else None
            if overlap is not None:
                self.choice.meter.add("selection_overlap", overlap)
            fraction = slide.tiles.index.tumour_fraction  # None where there are no outlines
            if len(best) and fraction is not None and (fraction > TUMOUR_TILE).any():
                self.choice.meter.add("kept_in_outlines", float((fraction[best] > TUMOUR_TILE).mean()))

    def _count_guess(self, targets: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """Add the loss that guessing has on the slides of the step, that of single tiles included."""
        slides, logits = len(targets[0]), self.guess
        assert logits is not None
        logits = logits.to(targets[0].device).expand(slides, -1)  # (B, C)
        # The single-tile losses of a slide have shares that add up to 1, so they are that of the slide once more.
        loss = (1 + self.settings.section.tile_loss) * task_loss(logits, targets, self.net.tasks, weights=weights)
        for _ in range(slides):  # as the loss of an epoch, a mean over slides
            self.choice.meter.add("guess_loss", float(loss))

    def _require_finite(self, loss: float, epoch: int, optimiser: torch.optim.Optimizer) -> None:
        if not math.isfinite(loss):
            raise self._diverged(epoch, f"the loss is {loss}", optimiser)

    def _diverged(self, epoch: int, what: str, optimiser: torch.optim.Optimizer | None = None) -> DivergedError:
        section = self.settings.section
        rate = section.learning_rate
        now = "" if optimiser is None else f" at learning rate {optimiser.param_groups[0]['lr']:.3g}"
        is_fp32 = self.settings.compute.gradient_precision == "fp32"
        reduced = "" if is_fp32 else ", or `compute.gradient_precision: fp32`"
        error = DivergedError(
            f"epoch {epoch}: {what}{now}; training has diverged and was stopped. `training.learning_rate` is {rate:g}: "
            f"try {min(rate / 10, DEFAULT_RATE):.0e}, more `training.warmup_steps` (now "
            f"{section.warmup_steps}){reduced}, and train again"
        )
        error.is_told = not self.processes.is_first
        return error


def among_all(embeddings: Tensor, own: Sequence[int], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Put the embeddings of the own slides, (b, K, D), into a table of all slides of the step, zeros elsewhere.

    ``counts`` are the kept tiles of every slide of the step. Returns the table, (B, K, D), and its mask, (B, K).
    """
    device = embeddings.device
    mask = (torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]).to(device)  # (B, K)
    table = embeddings.new_zeros(*mask.shape, embeddings.shape[2])
    if own:
        table[torch.tensor(own, device=device), : embeddings.shape[1]] = embeddings
    return table, mask


def truth_table(batch: Sequence[LabelledSlide], kept: Mapping[int, Kept], width: int, classes: int) -> Tensor | None:
    """Return what is known of the kept tiles of a step, (B, K, C), NaN where unknown; None without any such slide.

    ``kept`` are those of the own slides, by number.
    """
    if all(slide.truth is None for slide in batch):
        return None
    table = torch.full((len(batch), width, classes), math.nan)
    for number, entry in kept.items():
        known = batch[number].truth
        if known is not None:
            table[number, : len(entry.tiles)] = torch.from_numpy(known.of(entry.tiles))
    return table


def averaged(net: IpsNet, decay: float) -> AveragedModel:
    """Return a copy of a network whose weights are a running average (EMA); buffers are those of the network.

    The decay is ``min(decay, (1 + n) / (10 + n))`` after n steps, so that the first weights are soon forgotten.
    """

    def average(averages: Sequence[Tensor], now: Sequence[Tensor], steps: Tensor | int) -> None:
        n = int(steps)
        torch._foreach_lerp_(list(averages), list(now), 1 - min(decay, (1 + n) / (10 + n)))

    with torch.no_grad():
        return AveragedModel(net, multi_avg_fn=torch.no_grad()(average))


class MixedPrecision(torch.amp.GradScaler):
    """Autocast of the encoder where it learns, and the scale of the loss; ``dtype`` is that of the activations.

    Weights, optimiser, pooling and loss stay in float32. bfloat16 has the range of float32 and needs no scale; with
    float16 the loss is scaled up, and a step whose gradient overflows is skipped.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(device.type, enabled=dtype == torch.float16)
        self._dtype = dtype

    def encoder(self) -> AbstractContextManager[object]:
        """Return a ``with`` block in which the encoder runs in reduced precision."""
        return torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32)

    def full(self) -> AbstractContextManager[object]:
        """Return a ``with`` block in which everything runs in full precision."""
        return torch.autocast(self._device, enabled=False)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state to store, as tensors; empty where nothing is scaled."""
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in super().state_dict().items()}

    def load_state_dict(self, stored: Mapping[str, Tensor]) -> None:
        """Restore the stored state."""
        kinds = {name: type(value) for name, value in super().state_dict().items()}
        if stored:  # nothing is stored where nothing was scaled
            super().load_state_dict({name: kind(stored[name].item()) for name, kind in kinds.items()})
