"""Training of an encoder without labels: the start `self-supervised`, and ``wsi-ips train --encoder-only FILE``.

Either ends in a file for ``model.weights``, so whatever follows is a training on given weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wsi_ips.config import Recipe
from wsi_ips.errors import RecipeError, RegionReadError, TrainingError
from wsi_ips.model.checkpoint import load_trunk
from wsi_ips.model.checkpoint_card import checkpoint_fingerprint
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.encoder_families import build_encoder
from wsi_ips.model.encoder_file import FINGERPRINT, encoder_header, write_encoder
from wsi_ips.model.freezing import add_lora, freeze
from wsi_ips.pipeline.progress import Progress
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.pipeline.slide_states import StateTable
from wsi_ips.pipeline.train_cohort import leave_out
from wsi_ips.provenance import fingerprint
from wsi_ips.tiles.stream import SlideTiles
from wsi_ips.training.model_building import plan_encoder
from wsi_ips.training.processes import Processes
from wsi_ips.training.resume import StateFile, StopRequest
from wsi_ips.training.self_supervision import EncoderListener, EncoderRecord, EncoderTrainer, SelfSupervision

GENTLE_RATE = 1e-4  # learning rate where the encoder has weights already
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class EncoderJob:
    """A self-supervision on its own: the file to write, and the slides to learn from."""

    path: Path
    splits: Sequence[str]
    steps: int  # optimiser steps

    def __post_init__(self) -> None:
        if self.path.suffix != SUFFIX:
            raise RecipeError(f"{self.path}: the encoder's weights are written as {SUFFIX}; name such a file")


def encoder_stage(
    recipe: Recipe,
    slides: RunSlides,
    states: StateTable,
    progress: Progress,
    processes: Processes,
    job: EncoderJob,
) -> None:
    """Train the recipe's encoder on the tiles of slides, labelled or not, from where an earlier call stopped.

    A slide whose tiles cannot be read is marked as failed, and training starts again without it.
    """
    while True:
        tiles = _tiles_of(slides, states, job.splits)
        try:
            encoder_weights(recipe, tiles, job.path, steps=job.steps, progress=progress, processes=processes)
        except RegionReadError as error:
            leave_out(error, states, progress, processes)
        else:
            return


def encoder_weights(
    recipe: Recipe,
    slides: Sequence[SlideTiles],
    path: Path,
    *,
    steps: int,
    progress: Progress,
    processes: Processes,
) -> Path:
    """Train the recipe's encoder on the tiles of some slides; return the file of its weights, ``path``.

    Returns at once where the file has the weights of the same training. The state of a training that was stopped is
    beside the file.
    """
    model = recipe.model
    settings = SelfSupervision(steps, recipe.seed, recipe.compute, recipe.training.augment)
    if model.pretrained or model.weights is not None or model.start is not None:
        settings = replace(settings, learning_rate=GENTLE_RATE)
    wanted = processes.same(_fingerprint(recipe, slides, steps), "self-supervision (recipe or tiles)")
    if processes.from_first(encoder_header(path).get(FINGERPRINT) == wanted):
        return path
    encoder = _build(recipe, processes)
    stop = StopRequest(insistent=processes.is_alone)
    state = StateFile(path.with_suffix(".state"), wanted)
    with stop.on_signals(), progress.stage("self-supervision", steps, "steps") as advance:
        listener = _Listener(progress, advance)
        EncoderTrainer(encoder, settings, processes=processes, listener=listener).fit(slides, file=state, stop=stop)
    with processes.ahead() as is_first:
        if is_first:
            write_encoder(path, encoder, fingerprint=wanted)
            state.path.unlink(missing_ok=True)
    return path


def _build(recipe: Recipe, processes: Processes) -> Encoder:
    """Build the recipe's encoder on the device of a process, without projector, with its frozen parts."""
    model, plan = recipe.model, plan_encoder(recipe.model)
    torch.manual_seed(recipe.seed)
    spec = replace(plan.spec, projector=0)
    with processes.ahead() as is_first:
        built = build_encoder(spec, pretrained=plan.pretrained, weights=plan.weights) if is_first else None
    encoder = built or build_encoder(spec, pretrained=plan.pretrained, weights=plan.weights)
    if plan.start is not None:
        load_trunk(encoder.trunk, plan.start)
    encoder.check_patch(recipe.tiles.patch_px)
    freeze(encoder, model.freeze)
    if model.lora_rank:
        add_lora(encoder, model.lora_rank)
    return encoder.to(processes.device)


def _fingerprint(recipe: Recipe, slides: Sequence[SlideTiles], steps: int) -> str:
    model, start = recipe.model, recipe.model.start
    built = {key: getattr(model, key) for key in ("encoder", "pretrained", "weights", "freeze", "lora_rank", "norm")}
    learned = sorted((slide.slide_id, slide.index.fingerprint) for slide in slides)
    begun = checkpoint_fingerprint(start) if start else ""
    return fingerprint("self-supervision", built, begun, recipe.training.augment, recipe.seed, steps, learned)


def _tiles_of(slides: RunSlides, states: StateTable, splits: Sequence[str]) -> list[SlideTiles]:
    """Return the tiles of the slides of some splits, without slides that an earlier training failed to read."""
    listed = [record for record in slides.records if record.split in splits]
    usable = [record for record in states.with_tiles(listed) if states[record.slide_id].stage != "train"]
    if not usable:
        raise TrainingError(
            f"manifest {slides.manifest}: no slide with tiles has split {' or '.join(splits)}; fill column "
            "`split`, or name another split (`--split`)"
        )
    return [slides.tiles(record) for record in usable]


class _Listener(EncoderListener):
    """Passes on what happens to the user."""

    def __init__(self, progress: Progress, advance: Callable[[int], None]) -> None:
        self._progress, self._advance = progress, advance

    def on_steps(self, count: int) -> None:
        self._advance(count)

    def on_epoch(self, record: EncoderRecord) -> None:
        self.note(f"self-supervision, step {record.steps}: loss {record.loss:.3f}, spread {record.spread:.2f}")

    def on_resume(self, history: Sequence[EncoderRecord]) -> None:
        self.note(f"self-supervision resumes after {len(history)} epochs")

    def note(self, text: str) -> None:
        self._progress.note(text)
