"""Stage ``train``: learn from the training slides, keep the best epoch by validation loss."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from wsi_ips.config import AugmentSection, planned
from wsi_ips.errors import DivergedError, FeaturesError, RegionReadError, TrainingError
from wsi_ips.inference.preparation import preparation_of
from wsi_ips.manifest import SlideRecord
from wsi_ips.model import EncoderSpec, IpsNet, ModelCard, read_card, save_checkpoint
from wsi_ips.model.card import CARD_NAME, EncoderOrigin, checkpoint_fingerprint
from wsi_ips.model.checkpoint import add_trunk, build_net, start_from_checkpoint
from wsi_ips.model.encoders import encoder_remarks
from wsi_ips.model.freezing import add_lora, freeze
from wsi_ips.pipeline.checks.split import require_no_leak
from wsi_ips.pipeline.learning.encoding import feature_source, plan_encoder
from wsi_ips.pipeline.learning.feature_source import FeatureSource
from wsi_ips.pipeline.learning.training_facts import training_facts
from wsi_ips.pipeline.run import Run
from wsi_ips.provenance import atomic_folder, fingerprint
from wsi_ips.scanning import choose_device
from wsi_ips.training import EpochRecord, LabelledSlide, StateFile, StopRequest, Trainer, best_epoch
from wsi_ips.training.tracking import MetricsFile, TensorBoardFile, Tracker, Tracking, mlflow_run
from wsi_ips.training.world import World

UNCHANGED = AugmentSection.nothing()
"""Of features: there are no pixels to change."""
STATE_NAME, BEST_NAME = "state.safetensors", "best"
"""In the folder of a training at work."""


def train_stage(run: Run, world: World | None = None) -> bool:
    """Train unless the checkpoint is up to date, from where an earlier call stopped; whether anything was done.

    A training slide whose tiles cannot be read is marked as failed and training starts again without it.

    Parameters
    ----------
    run
        Of several processes each has its own; only the first writes into the folder.
    world
        The processes that train together; None trains alone.

    Raises
    ------
    TrainingError
        Too many training slides yielded no tile, a class has none, or the loss is not finite.
    """
    if run.recipe.predict.checkpoint is not None:
        return False
    world = world or World(choose_device(run.recipe.compute.device))
    with world.ahead() as is_first:
        if is_first:
            require_no_leak(run)
    features = feature_source(run) if run.recipe.model.input == "features" else None
    while True:
        train, val = (
            [r for r in _labelled(run, part) if features is None or features.has(r)] for part in ("train", "val")
        )
        world.attempt(partial(_check_enough, run, train))
        wanted = world.same(_fingerprint(run, [*train, *val], features), "training (recipe, labels or tiles)")
        if world.from_first(_is_trained(run, wanted)):
            return False
        try:
            _fit(run, train, val, wanted, world, features)
        except (RegionReadError, FeaturesError) as error:
            if error.slide_id is None:
                raise
            with world.ahead() as is_first:
                if is_first:
                    run.states.fail(error.slide_id, "train", error)
                    run.states.save()
            if not is_first:
                run.read_states()
            run.progress.note(f"slide {error.slide_id} cannot be read; training starts again without it: {error}")
            continue
        return True


def _is_trained(run: Run, wanted: str) -> bool:
    return (run.folder.model / CARD_NAME).exists() and read_card(run.folder.model).fingerprint == wanted


def _preparation(run: Run, records: Sequence[SlideRecord]) -> dict[str, Any]:
    return preparation_of(run.recipe, imported=any(r.coordinates is not None for r in records))


def _labelled(run: Run, split: str) -> list[SlideRecord]:
    """Slides of a split with a label in any task, and tiles that no earlier training failed to read."""
    chosen = [r for r in run.records if r.split == split and _has_label(run, r)]
    return [r for r in run.with_tiles(chosen) if run.states[r.slide_id].stage != "train"]


def _has_label(run: Run, record: SlideRecord) -> bool:
    return any(truth is not None for truth in run.truths[record.slide_id])


def _check_enough(run: Run, train: Sequence[SlideRecord]) -> None:
    listed = [r for r in run.records if r.split == "train" and _has_label(run, r)]
    if not listed:
        raise TrainingError(
            f"manifest {run.recipe.manifest}: no slide has split `train` and a label; fill both columns, or set "
            "`predict.checkpoint` to use a trained model"
        )
    missing = sorted({r.slide_id for r in listed} - {r.slide_id for r in train})
    share, allowed = len(missing) / len(listed), run.recipe.training.max_missing_share
    if missing:
        run.progress.note(f"{len(missing)} of {len(listed)} training slides yielded no tile: {', '.join(missing[:10])}")
    if share > allowed:
        raise TrainingError(
            f"{len(missing)} of {len(listed)} training slides ({share:.0%}) yielded no tile, more than "
            f"`training.max_missing_share` allows ({allowed:.0%}): {', '.join(missing[:10])}; see `wsi-ips status` "
            "for the reasons, mend the slides or raise the limit"
        )


def _fingerprint(run: Run, records: Sequence[SlideRecord], features: FeatureSource | None) -> str:
    recipe = run.recipe
    learned = [run.header(r).fingerprint if features is None else features.wanted(r) for r in records]
    inputs = sorted(
        (r.slide_id, str(run.truths[r.slide_id]), r.split, tiles) for r, tiles in zip(records, learned, strict=True)
    )
    start = [checkpoint_fingerprint(recipe.model.start)] if recipe.model.start else []
    return fingerprint("train", recipe.model, recipe.training, recipe.labels, recipe.seed, inputs, *start)


def _fit(
    run: Run,
    train: Sequence[SlideRecord],
    val: Sequence[SlideRecord],
    wanted: str,
    world: World,
    features: FeatureSource | None,
) -> None:
    recipe, device = run.recipe, world.device
    torch.manual_seed(recipe.seed)
    section, training = recipe.model, planned(recipe.training, len(train))
    plan = plan_encoder(section)
    spec, origin = plan.spec, plan.origin
    if features is not None and features.files is not None:
        name, width = features.of_one_encoder([*train, *val])
        spec = EncoderSpec(name, "batch", frozen_statistics=True, projector=spec.projector, features=width)
        origin = EncoderOrigin("imported")
    card = ModelCard(
        model_id=f"{recipe.name}-{wanted[:8]}",
        tasks=recipe.labels.tasks,
        encoder=spec,
        heads=section.heads,
        key_width=section.key_width,
        dropout=section.dropout,
        memory_size=section.memory_size,
        patch_mpp=recipe.tiles.mpp,
        patch_px=recipe.tiles.patch_px,
        fingerprint=wanted,
        pooling=section.pooling,
        position=section.position,
        preparation=_preparation(run, [*train, *val]),
        training=training_facts(run, train, val),
        origin=origin,
        input=section.input,
        freeze="lora" if section.lora_rank else section.freeze,
    )
    for text in encoder_remarks(spec.name, mpp=recipe.tiles.mpp, patch_px=recipe.tiles.patch_px):
        run.progress.note(text)
    build = partial(build_net, card, pretrained=plan.pretrained, weights=plan.weights)
    with world.ahead() as is_first:  # published weights are fetched once
        built = build() if is_first else None
    net = built or build()
    if section.start is not None:
        start_from_checkpoint(net, section.start)
    net.encoder.check_patch(recipe.tiles.patch_px)
    trunk = None
    if features is not None:  # the trunk has done its work; it goes into the checkpoint again, which then takes pixels
        trunk = None if features.files is not None else net.encoder.take_trunk()
        training = training.model_copy(update={"augment": UNCHANGED})
    freeze(net.encoder, section.freeze)
    if section.lora_rank:
        add_lora(net.encoder, section.lora_rank)
    net.to(device)
    card = replace(card, encoder=net.encoder.spec)
    tracking = _tracking(run, wanted) if world.is_first else Tracking([], run.progress.note)
    keeper = _Keeper(run, card, tracking, training.epochs) if world.is_first else None
    stop = StopRequest(insistent=world.is_alone)
    for folder in (run.folder.model, run.folder.last_model) if world.is_first else ():
        (folder / CARD_NAME).unlink(missing_ok=True)  # no card of another training while this one runs
    tiles_of = run.tiles if features is None else features.tiles
    labelled = [[LabelledSlide(tiles_of(r), run.truths[r.slide_id]) for r in part] for part in (train, val)]
    total = training.epochs * len(train)
    with tracking, stop.on_signals(), run.progress.stage("training", total, "slides") as advance:
        trainer = Trainer(
            net,
            memory_size=section.memory_size,
            section=training,
            compute=recipe.compute,
            seed=recipe.seed,
            device=device,
            on_slides=advance,
            note=run.progress.note,
            world=world,
            started=section.start is not None,
        )
        state = StateFile(run.folder.training / STATE_NAME, wanted)
        try:
            trainer.fit(
                *labelled,
                on_epoch=lambda record: keeper(record, trainer.result) if keeper else None,
                state=state,
                on_resume=keeper.resume if keeper else lambda _: None,
                stop=stop,
            )
        except DivergedError as error:
            if keeper is None:
                raise
            raise DivergedError(f"{error}; {keeper.what_is_left()}") from error
    if keeper:
        keeper.finish(trainer.result, trunk)


def _tracking(run: Run, wanted: str) -> Tracking:
    recipe, folder = run.recipe, run.folder
    parameters = {
        f"{name}.{key}": value
        for name, section in (("model", recipe.model), ("training", recipe.training))
        for key, value in section.model_dump(mode="json").items()
    }
    mlflow = mlflow_run(recipe.tracking, name=recipe.name, folder=folder.root, training=wanted, parameters=parameters)
    trackers: list[Tracker] = [
        MetricsFile(folder.metrics),
        TensorBoardFile(folder.tensorboard),
        *([mlflow] if mlflow else []),
    ]
    return Tracking(trackers, run.progress.note)


class _Keeper:
    """Tells of each epoch and keeps the checkpoint of the best, apart until the training is done.

    A checkpoint in the run's folder ``model`` is therefore always that of a whole training.
    """

    def __init__(self, run: Run, card: ModelCard, tracking: Tracking, epochs: int) -> None:
        self.run, self.card, self.tracking, self.epochs = run, card, tracking, epochs
        self.history: list[EpochRecord] = []
        self.folder = run.folder.training / BEST_NAME
        run.folder.training.mkdir(parents=True, exist_ok=True)
        tracking.write(self.history)

    def resume(self, history: Sequence[EpochRecord]) -> None:
        """Stand where the training stands that goes on."""
        self.history = list(history)
        self.tracking.write(self.history)
        self.run.progress.note(f"training goes on in epoch {len(history) + 1}")

    def __call__(self, record: EpochRecord, net: IpsNet) -> None:
        self.history.append(record)
        self.tracking.write(self.history)
        auc = "" if record.val_auc is None else f", AUC {record.val_auc:.3f}"
        validation = "" if record.val_loss is None else f", validation loss {record.val_loss:.3f}{auc}"
        self.run.progress.note(
            f"epoch {record.epoch}: loss {record.loss:.3f}, accuracy {record.accuracy:.2f}{validation}"
        )
        if self._best is record:
            save_checkpoint(self.folder, net, self._card(record))

    def finish(self, net: IpsNet, trunk: nn.Module | None = None) -> None:
        """Put the best and the last checkpoint in their places, with the trunk of a training on features."""
        last = self.history[-1]
        if len(self.history) < self.epochs:
            self.run.progress.note(
                f"stopped after epoch {last.epoch}: none better than epoch {self._best.epoch} in the last "
                f"{self.run.recipe.training.patience} (`training.patience`)"
            )
        with atomic_folder(self.run.folder.last_model) as folder:
            save_checkpoint(folder, net, self._card(last))
            if trunk is not None:
                add_trunk(folder, trunk)
        if trunk is not None:
            add_trunk(self.folder, trunk)
        with atomic_folder(self.run.folder.model) as folder:
            for file in self.folder.iterdir():
                file.replace(folder / file.name)
        shutil.rmtree(self.run.folder.training)

    def what_is_left(self) -> str:
        """For a training that cannot go on."""
        if not self.history:
            return "no epoch was finished, so there is no checkpoint"
        return (
            f"the best checkpoint before, of epoch {self._best.epoch} (training loss {self._best.loss:.3g}), is in "
            f"{self.folder} until the next training, for `wsi-ips predict --checkpoint`"
        )

    @property
    def _best(self) -> EpochRecord:
        return best_epoch(self.history, self.run.recipe.training.select)

    def _card(self, record: EpochRecord) -> ModelCard:
        left_out = ("seconds", "cost")
        figures = {k: float(v) for k, v in asdict(record).items() if v is not None and k not in left_out}
        return replace(self.card, metrics=figures)
