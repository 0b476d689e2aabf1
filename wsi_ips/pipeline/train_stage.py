"""Stage ``train``: learn from the training slides, keep the best epoch on the validation slides."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import manual_seed, nn

from wsi_ips.cluster.machine import Launch
from wsi_ips.config import AugmentSection, ModelSection, PlannedTraining, Recipe, planned
from wsi_ips.errors import DivergedError, FeaturesError, RegionReadError
from wsi_ips.model.checkpoint import add_trunk, save_checkpoint
from wsi_ips.model.checkpoint_card import CARD_NAME, read_card
from wsi_ips.model.encoders import encoder_remarks
from wsi_ips.model.net import IpsNet
from wsi_ips.pipeline.checkpoint_keeper import CheckpointKeeper
from wsi_ips.pipeline.encoder_stage import encoder_weights
from wsi_ips.pipeline.feature_source import FeaturePlan, feature_source
from wsi_ips.pipeline.progress import Progress, Silent
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.pipeline.slide_states import StateTable
from wsi_ips.pipeline.split_cohort import require_no_leak
from wsi_ips.pipeline.start_on_features import start_on_features
from wsi_ips.pipeline.train_cohort import TrainingCohort, leave_out, training_cohort
from wsi_ips.provenance import atomic_folder
from wsi_ips.scanning import choose_device
from wsi_ips.training.guessing import early_warning, final_warning
from wsi_ips.training.loop import Trainer
from wsi_ips.training.model_building import EncoderPlan, build_network
from wsi_ips.training.processes import Processes
from wsi_ips.training.resume import StateFile, StopRequest
from wsi_ips.training.settings import Settings
from wsi_ips.training.starts import STARTS, choose_start, started
from wsi_ips.training.tracking import MetricsFile, Tracker, Tracking, mlflow, tensorboard

STATE_NAME, BEST_NAME = "state.safetensors", "best"  # in the folder of a running training
RATE_OF_GIVEN_WEIGHTS = 0.3  # of the learning rate, for an encoder that was trained before


def joined(device: str) -> AbstractContextManager[Processes]:
    """Connect the processes that ``torchrun`` started, for a ``with`` block; without it this process is alone."""
    return Processes.joined(Launch.of(), device=device)


def train_stage(
    recipe: Recipe, slides: RunSlides, states: StateTable, progress: Progress, processes: Processes | None = None
) -> bool:
    """Train from where an earlier call stopped; return False where the checkpoint is up to date.

    A training slide whose tiles cannot be read is marked as failed, and training starts again without it. Each process
    has ``slides`` and ``states`` of its own; only the first writes into the folder. Without ``processes`` it trains
    alone.
    """
    if recipe.predict.checkpoint is not None:
        return False
    folder, processes = states.folder, processes or Processes(choose_device(recipe.compute.device))
    with processes.ahead() as is_first:
        if is_first:
            require_no_leak(slides, states, recipe.split.allow)
    choice = choose_start(recipe.training, recipe.model, _outlined(slides, states))
    recipe = recipe.model_copy(update={"training": started(recipe.training, choice)})
    on_features = recipe.model.input == "features"
    features = feature_source(FeaturePlan.of(recipe, folder), slides) if on_features else None
    while True:
        cohort = training_cohort(recipe, slides, features, states, progress, processes)
        model = folder.model
        is_trained = (model / CARD_NAME).exists() and read_card(model).fingerprint == cohort.fingerprint
        if processes.from_first(is_trained):
            return False
        progress.note(f"training starts on `{choice.name}`: {choice.why}")
        try:
            _fit(recipe, cohort, states, progress, processes)
        except (RegionReadError, FeaturesError) as error:
            leave_out(error, states, progress, processes)
        else:
            return True


def _outlined(slides: RunSlides, states: StateTable) -> int:
    """Return the number of training slides with outlined tumour in their tiles."""
    annotated = [r for r in slides.records if r.split == "train" and r.annotation is not None]
    fractions = [slides.index(record).tumour_fraction for record in states.with_tiles(annotated)]
    return sum(fraction is not None and bool((fraction > 0).any()) for fraction in fractions)


class _Started(NamedTuple):
    """A training whose start before the training loop is done."""

    model: ModelSection  # that of the recipe, with the weights that self-supervision made
    plan: EncoderPlan
    checkpoint: Path | None  # to go on from


def _start(
    recipe: Recipe, cohort: TrainingCohort, states: StateTable, progress: Progress, processes: Processes
) -> _Started:
    """Do what comes before the training loop: self-supervision, and the start on features."""
    model, plan, entry = recipe.model, cohort.encoder_plan(recipe.model), STARTS[recipe.training.start]
    remarks = encoder_remarks(plan.spec.name, mpp=recipe.tiles.mpp, patch_px=recipe.tiles.patch_px)
    for text in (*remarks, *recipe.labels.assumed):
        progress.note(text)
    if entry.trains_encoder:
        steps = entry.steps if recipe.training.start_steps is None else recipe.training.start_steps
        tiles, path = [cohort.slides.tiles(record) for record in cohort.train], states.folder.encoder
        weights = encoder_weights(recipe, tiles, path, steps=steps, progress=progress, processes=processes)
        origin = plan.origin and replace(plan.origin, self_supervised=True)
        model = model.model_copy(update={"weights": weights, "pretrained": False, "start": None})
        plan = replace(cohort.encoder_plan(model), origin=origin)
    checkpoint = model.start
    if entry.on_features:
        recipe = recipe.model_copy(update={"model": model})
        checkpoint = start_on_features(recipe, cohort, states, progress, processes)
    return _Started(model, plan, checkpoint)


def _fit(recipe: Recipe, cohort: TrainingCohort, states: StateTable, progress: Progress, processes: Processes) -> None:
    is_first, folder = processes.is_first, states.folder
    model, plan, start = _start(recipe, cohort, states, progress, processes)
    manual_seed(recipe.seed)
    card, on_features = cohort.card(recipe, plan), cohort.features is not None
    section = model.model_copy(update={"start": start})
    net, trunk = build_network(section, card, plan, processes=processes, on_features=on_features)
    card = replace(card, encoder=net.encoder.spec)
    for old in (folder.model, folder.last_model) if is_first else ():
        (old / CARD_NAME).unlink(missing_ok=True)  # no card of another training while this one runs
    training = planned(recipe.training, len(cohort.train))
    if on_features:  # there are no pixels to change
        training = training.model_copy(update={"augment": AugmentSection.nothing()})
    rate = training.encoder_rate or (RATE_OF_GIVEN_WEIGHTS if plan.has_weights else 1.0)
    settings = Settings(training, recipe.compute, model.memory_size, recipe.seed, rate, continues=start is not None)
    said = start is not None and STARTS[training.start].on_features  # the start said what outlines teach
    train = cohort.to_learn_from(training, recipe.labels.tasks, Silent().note if said else progress.note, processes)
    val = cohort.labelled(cohort.val)
    stop = StopRequest(insistent=processes.is_alone)
    trackers = _trackers(recipe, folder, cohort.fingerprint, progress.note) if is_first else []
    with (
        Tracking(trackers, progress.note) as tracking,
        stop.on_signals(),
        progress.stage("training", training.epochs * len(train), "slides") as advance,
    ):
        keeper = CheckpointKeeper(folder.training / BEST_NAME, card, tracking, advance, select=training.select)
        keeper.warn = partial(early_warning, training=recipe.training, model=model)
        if is_first:
            keeper.begin()
        trainer = Trainer(net, settings, processes=processes, listener=keeper)
        try:
            trainer.fit(train, val, file=StateFile(folder.training / STATE_NAME, cohort.fingerprint), stop=stop)
        except DivergedError as error:
            if not is_first:
                raise
            raise DivergedError(f"{error}; {keeper.what_is_left()}") from error
    if is_first:
        _publish(folder, keeper, trainer.result, training, trunk)
        if warning := final_warning(keeper.figures, recipe.training, model):
            progress.note(warning)


def _publish(
    places: RunFolder, keeper: CheckpointKeeper, net: IpsNet, training: PlannedTraining, trunk: nn.Module | None
) -> None:
    """Move the best and the last checkpoint to their places, complete with the trunk of a training on features.

    So a checkpoint in the run's folder ``model`` is always that of a complete training.
    """
    last = keeper.history[-1]
    if len(keeper.history) < training.epochs:
        keeper.note(
            f"stopped after epoch {last.epoch}: none better than epoch {keeper.best.epoch} in the last "
            f"{training.patience} (`training.patience`)"
        )
    with atomic_folder(places.last_model) as folder:
        save_checkpoint(folder, net, keeper.card_of(last))
        if trunk is not None:
            add_trunk(folder, trunk)
    if trunk is not None:
        add_trunk(keeper.folder, trunk)
    with atomic_folder(places.model) as folder:
        for file in keeper.folder.iterdir():
            file.replace(folder / file.name)
    shutil.rmtree(places.training)


def _trackers(recipe: Recipe, folder: RunFolder, training: str, note: Callable[[str], None]) -> list[Tracker]:
    parameters = {
        f"{name}.{key}": value
        for name, section in (("model", recipe.model), ("training", recipe.training))
        for key, value in section.model_dump(mode="json").items()
    }
    return [
        MetricsFile(folder.metrics),
        *tensorboard(folder.tensorboard, note),
        *mlflow(recipe.tracking.mlflow, folder.root, experiment=recipe.name, training=training, parameters=parameters),
    ]
