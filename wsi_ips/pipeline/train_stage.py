"""Stage ``train``: learn from the training slides, keep the best epoch on the validation slides."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import manual_seed, nn

from wsi_ips.cluster.machine import Launch
from wsi_ips.config import AugmentSection, Recipe, planned
from wsi_ips.errors import DivergedError, FeaturesError, RegionReadError, TrainingError
from wsi_ips.evaluation.slide_evaluation import SITE_COLUMNS
from wsi_ips.inference.preparation import preparation_of
from wsi_ips.manifest.manifest_csv import read_rows
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint import add_trunk, save_checkpoint
from wsi_ips.model.checkpoint_card import CARD_NAME, ModelCard, checkpoint_fingerprint, read_card
from wsi_ips.model.encoders import encoder_remarks
from wsi_ips.model.net import IpsNet
from wsi_ips.pipeline.feature_source import FeatureSource, feature_source
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.slide_outlines import uses_outlines, with_truth
from wsi_ips.pipeline.split_cohort import require_no_leak
from wsi_ips.provenance import atomic_folder, fingerprint, run_facts
from wsi_ips.scanning import choose_device
from wsi_ips.training.loop import Trainer
from wsi_ips.training.model_building import build_network, new_card, plan_encoder
from wsi_ips.training.processes import Processes
from wsi_ips.training.resume import StateFile, StopRequest
from wsi_ips.training.settings import LabelledSlide, Listener, Settings
from wsi_ips.training.tracking import EpochRecord, MetricsFile, Tracker, Tracking, mlflow, tensorboard
from wsi_ips.training.validation import best_epoch

STATE_NAME, BEST_NAME = "state.safetensors", "best"  # in the folder of a running training


def joined(recipe: Recipe) -> AbstractContextManager[Processes]:
    """Connect the processes that ``torchrun`` started, for a ``with`` block; without it this process is alone."""
    return Processes.joined(Launch.of(), device=recipe.compute.device)


def train_along(recipe: Recipe) -> None:
    """Run any process but the first: wait until the slides are tiled, then train with the others."""
    with joined(recipe) as processes:
        with processes.ahead():
            pass
        with Run.open(recipe) as run:
            train_stage(run, processes)


@dataclass(frozen=True)
class Cohort:
    """Input of a training."""

    train: Sequence[SlideRecord]
    val: Sequence[SlideRecord]
    features: FeatureSource | None  # stored features of the slides; None for pixels
    fingerprint: str  # of the training


def train_stage(run: Run, processes: Processes | None = None) -> bool:
    """Train from where an earlier call stopped; return False where the checkpoint is up to date.

    A training slide whose tiles cannot be read is marked as failed, and training starts again without it. Each process
    has a ``run`` of its own; only the first writes into the folder. Without ``processes`` it trains alone.
    """
    recipe = run.recipe
    if recipe.predict.checkpoint is not None:
        return False
    processes = processes or Processes(choose_device(recipe.compute.device))
    with processes.ahead() as is_first:
        if is_first:
            require_no_leak(run)
    features = feature_source(run) if recipe.model.input == "features" else None
    while True:
        cohort = _cohort(run, features, processes)
        model = run.folder.model
        is_trained = (model / CARD_NAME).exists() and read_card(model).fingerprint == cohort.fingerprint
        if processes.from_first(is_trained):
            return False
        try:
            _fit(run, cohort, processes)
        except (RegionReadError, FeaturesError) as error:
            if error.slide_id is None:
                raise
            with processes.ahead() as is_first:
                if is_first:
                    run.states.fail(error.slide_id, "train", error)
                    run.states.save()
            if not is_first:
                run.read_states()
            run.progress.note(f"slide {error.slide_id} cannot be read; training starts again without it: {error}")
        else:
            return True


def _cohort(run: Run, features: FeatureSource | None, processes: Processes) -> Cohort:
    """Collect the slides to learn from: labelled, with tiles (and features) that no earlier training failed to read."""

    def usable(split: str) -> list[SlideRecord]:
        tiled = run.with_tiles([r for r in run.records if r.split == split and _has_label(run, r)])
        readable = [r for r in tiled if run.states[r.slide_id].stage != "train"]
        return [r for r in readable if features is None or features.has(r)]

    train, val = usable("train"), usable("val")
    processes.attempt(partial(_require_enough, run, train))
    wanted = _fingerprint(run, [*train, *val], features)
    return Cohort(train, val, features, processes.same(wanted, "training (recipe, labels or tiles)"))


def _has_label(run: Run, record: SlideRecord) -> bool:
    return any(truth is not None for truth in run.targets[record.slide_id])


def _require_enough(run: Run, train: Sequence[SlideRecord]) -> None:
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
            "for the reasons, repair the slides or raise the limit"
        )


def _fingerprint(run: Run, records: Sequence[SlideRecord], features: FeatureSource | None) -> str:
    recipe = run.recipe
    learned = [run.header(r).fingerprint if features is None else features.wanted(r) for r in records]
    inputs = sorted(
        (r.slide_id, str(run.targets[r.slide_id]), r.split, tiles, *([r.outlines] if r.outlines else []))
        for r, tiles in zip(records, learned, strict=True)
    )
    start = [checkpoint_fingerprint(recipe.model.start)] if recipe.model.start else []
    return fingerprint("train", recipe.model, recipe.training, recipe.labels, recipe.seed, inputs, *start)


def _fit(run: Run, cohort: Cohort, processes: Processes) -> None:
    recipe, folder, is_first = run.recipe, run.folder, processes.is_first
    manual_seed(recipe.seed)
    card, net, trunk = _build(run, cohort, processes)
    training = planned(recipe.training, len(cohort.train))
    if cohort.features is not None:  # there are no pixels to change
        training = training.model_copy(update={"augment": AugmentSection.nothing()})
    settings = Settings(
        training, recipe.compute, recipe.model.memory_size, recipe.seed, continues=recipe.model.start is not None
    )
    tiles_of = run.tiles if cohort.features is None else cohort.features.tiles
    train, val = (
        [LabelledSlide(tiles_of(r), run.targets[r.slide_id]) for r in part] for part in (cohort.train, cohort.val)
    )
    if uses_outlines(training):
        known = partial(with_truth, train, cohort.train, recipe.labels.tasks, run.progress.note)
        train = processes.attempt(known) or []
        processes.gather()
    trackers = _trackers(run, cohort.fingerprint) if is_first else []
    for model in (folder.model, folder.last_model) if is_first else ():
        (model / CARD_NAME).unlink(missing_ok=True)  # no card of another training while this one runs
    stop = StopRequest(insistent=processes.is_alone)
    with (
        Tracking(trackers, run.progress.note) as tracking,
        stop.on_signals(),
        run.progress.stage("training", training.epochs * len(train), "slides") as advance,
    ):
        keeper = CheckpointKeeper(run, card, tracking, advance)
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
        keeper.finish(trainer.result, training.epochs, trunk)


def _build(run: Run, cohort: Cohort, processes: Processes) -> tuple[ModelCard, IpsNet, nn.Module | None]:
    recipe, features = run.recipe, cohort.features
    plan = plan_encoder(recipe.model)
    if features is not None and features.files is not None:
        plan = plan.with_features_of(*features.of_one_encoder([*cohort.train, *cohort.val]))
    card = replace(
        new_card(recipe.model, recipe.tiles, recipe.labels.tasks, plan),
        model_id=f"{recipe.name}-{cohort.fingerprint[:8]}",
        fingerprint=cohort.fingerprint,
        preparation=preparation_of(
            recipe, imported=any(r.coordinates is not None for r in (*cohort.train, *cohort.val))
        ),
        training=training_facts(run, cohort.train, cohort.val),
    )
    for text in encoder_remarks(plan.spec.name, mpp=recipe.tiles.mpp, patch_px=recipe.tiles.patch_px):
        run.progress.note(text)
    net, trunk = build_network(recipe.model, card, plan, processes=processes, on_features=features is not None)
    return replace(card, encoder=net.encoder.spec), net, trunk


def training_facts(run: Run, train: Sequence[SlideRecord], val: Sequence[SlideRecord]) -> dict[str, Any]:
    """Return what the model card says about a model's slides and its training, as plain JSON.

    ``slides``: per split the number of slides, of patients (None if unknown) and, per task, of slides of each class;
    ``places``: per split and site column its values with their slides; ``level0_mpp``: µm/px of level 0 with their
    slides; ``made``: time, versions, commit; ``recipe``: sections model and training, seed.
    """
    rows = read_rows(run.recipe.manifest, label_column=run.recipe.labels.column)
    cells = {row.cells["slide_id"]: row.cells for row in rows}
    splits, facts = {"train": train, "val": val}, run_facts()
    return {
        "slides": {name: _counted(run, records) for name, records in splits.items()},
        "places": {
            name: {
                column: dict(Counter(cells[r.slide_id][column] or "(empty)" for r in records))
                for column in SITE_COLUMNS
                if records and column in cells[records[0].slide_id]
            }
            for name, records in splits.items()
        },
        "level0_mpp": dict(Counter(f"{run.states[r.slide_id].mpp or 0:.4g}" for r in (*train, *val))),
        "made": {name: facts[name] for name in ("time", "wsi_ips", "commit", "python", "libraries")},
        "recipe": {
            "seed": run.recipe.seed,
            "model": run.recipe.model.model_dump(mode="json", exclude={"weights"}),
            "training": planned(run.recipe.training, len(train)).model_dump(mode="json"),
        },
    }


def _counted(run: Run, records: Sequence[SlideRecord]) -> dict[str, Any]:
    patients = {r.patient_id for r in records if r.patient_id}
    classes: dict[str, dict[str, int]] = {}
    for number, task in enumerate(run.recipe.labels.tasks):
        texts = [task.format(run.targets[r.slide_id][number]) or "(not known)" for r in records]
        classes[task.name] = dict(sorted(Counter(texts).items()))
    return {"slides": len(records), "patients": len(patients) or None, "classes": classes}


def _trackers(run: Run, training: str) -> list[Tracker]:
    recipe, folder = run.recipe, run.folder
    parameters = {
        f"{name}.{key}": value
        for name, section in (("model", recipe.model), ("training", recipe.training))
        for key, value in section.model_dump(mode="json").items()
    }
    return [
        MetricsFile(folder.metrics),
        *tensorboard(folder.tensorboard, run.progress.note),
        *mlflow(recipe.tracking.mlflow, folder.root, experiment=recipe.name, training=training, parameters=parameters),
    ]


class CheckpointKeeper(Listener):
    """Reports each epoch and keeps the checkpoint of the best one in a separate folder until the training is done.

    So a checkpoint in the run's folder ``model`` is always that of a complete training.
    """

    def __init__(self, run: Run, card: ModelCard, tracking: Tracking, advance: Callable[[int], None]) -> None:
        self.run, self.card, self.tracking, self._advance = run, card, tracking, advance
        self.history: list[EpochRecord] = []
        self.folder = run.folder.training / BEST_NAME

    def begin(self) -> None:
        """Prepare the folder; trackers discard what another training left there."""
        self.run.folder.training.mkdir(parents=True, exist_ok=True)
        self.tracking.write(self.history)

    def note(self, text: str) -> None:
        """Show a message."""
        self.run.progress.note(text)

    def on_slides(self, count: int) -> None:
        """Advance the progress bar."""
        self._advance(count)

    def on_resume(self, history: Sequence[EpochRecord]) -> None:
        """Restore the finished epochs."""
        self.history = list(history)
        self.tracking.write(self.history)
        self.note(f"training resumes in epoch {len(history) + 1}")

    def on_epoch(self, record: EpochRecord, net: IpsNet) -> None:
        """Report an epoch; keep its checkpoint if it is the best."""
        self.history.append(record)
        self.tracking.write(self.history)
        auc = "" if record.val_auc is None else f", AUC {record.val_auc:.3f}"
        validation = "" if record.val_loss is None else f", validation loss {record.val_loss:.3f}{auc}"
        self.note(f"epoch {record.epoch}: loss {record.loss:.3f}, accuracy {record.accuracy:.2f}{validation}")
        if self._best is record:
            save_checkpoint(self.folder, net, self._card(record))

    def finish(self, net: IpsNet, epochs: int, trunk: nn.Module | None) -> None:
        """Move the best and the last checkpoint to their places, complete with the trunk of a training on features."""
        last = self.history[-1]
        if len(self.history) < epochs:
            self.note(
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
        """Describe the checkpoint left by a training that cannot continue."""
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
