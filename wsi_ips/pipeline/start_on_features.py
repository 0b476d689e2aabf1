"""The start `features`: pooling and heads learn on features of all tiles, before training selects tiles.

The encoder as it is embeds every tile of the training slides, once plain and again in augmented views, and every tile
of the validation slides once. Projector, pooling and heads then learn on all tiles of a slide, so even a lesion of a
few tiles is in every step. Training goes on from the best epoch, with selection by its attention.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import manual_seed, nn

from wsi_ips.config import Recipe
from wsi_ips.errors import FeaturesError
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint import add_trunk
from wsi_ips.model.checkpoint_card import CARD_NAME, ModelCard, read_card
from wsi_ips.model.net import IpsNet
from wsi_ips.pipeline.checkpoint_keeper import CheckpointKeeper
from wsi_ips.pipeline.feature_source import FeaturePlan, FeatureSource, FeatureView, feature_source
from wsi_ips.pipeline.features_stage import compute_features
from wsi_ips.pipeline.progress import Progress
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.slide_states import StateTable
from wsi_ips.pipeline.train_cohort import TrainingCohort
from wsi_ips.provenance import fingerprint
from wsi_ips.training.loop import Trainer
from wsi_ips.training.model_building import build_network
from wsi_ips.training.processes import Processes
from wsi_ips.training.resume import StateFile, StopRequest
from wsi_ips.training.settings import Settings
from wsi_ips.training.starts import feature_views, head_section
from wsi_ips.training.tracking import MetricsFile, Tracking

MOST_TILES = 50_000  # of a slide in a step; the best by attention where there are more
BYTES_PER_VALUE = 2  # float16
MOST_OF_THE_DISK = 0.95  # share of the free space that features may take


@dataclass(frozen=True)
class HeadStart:
    """Where the start of a training is kept while the training runs."""

    folder: Path
    fingerprint: str

    @classmethod
    def of(cls, places: RunFolder, training: str) -> HeadStart:
        """Return that of a run's training with a fingerprint."""
        return cls(places.training / "start", fingerprint("start on features", training))

    @property
    def best(self) -> Path:
        """Checkpoint of the best epoch so far."""
        return self.folder / "best"

    @property
    def checkpoint(self) -> Path:
        """Checkpoint to go on from."""
        return self.folder / "model"

    @property
    def is_finished(self) -> bool:
        """Whether the checkpoint is there."""
        card = self.checkpoint / CARD_NAME
        return card.exists() and read_card(self.checkpoint).fingerprint == self.fingerprint

    def finish(self, trunk: nn.Module | None) -> None:
        """Make the best epoch the checkpoint, with the trunk that the training on features left out."""
        if trunk is not None:
            add_trunk(self.best, trunk)
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        self.best.rename(self.checkpoint)


def start_on_features(
    recipe: Recipe,
    cohort: TrainingCohort,
    states: StateTable,
    progress: Progress,
    processes: Processes,
) -> Path:
    """Train projector, pooling and heads on features of all tiles; return the checkpoint to go on from.

    An earlier call's start of the same training goes on where it stopped, or is returned if it is finished.

    Raises
    ------
    FeaturesError
        The features do not fit on the disk, with their size; or those of a slide are missing.
    """
    start = HeadStart.of(states.folder, cohort.fingerprint)
    if processes.from_first(start.is_finished):
        return start.checkpoint
    sources = _sources(recipe, cohort, states.folder)
    card, net, trunk = _network(recipe, cohort, processes, start.fingerprint)
    with processes.ahead() as is_first:
        if is_first and cohort.features is None:
            due = _due(sources, cohort)
            _require_room(due, net.encoder.trunk_width, states, progress)
            for source, records in due:
                compute_features(source, records, states, recipe.compute, progress)
            states.save()
    section = head_section(recipe.training, len(cohort.train))
    train = cohort.to_learn_from(section, recipe.labels.tasks, progress.note, processes, *sources)
    val = cohort.labelled(cohort.val, sources[0])
    most = min(MOST_TILES, max(len(slide.tiles.index) for slide in (*train, *val)))
    compute = recipe.compute.model_copy(update={"slides_at_once": recipe.compute.slides_at_once or 1})
    settings = Settings(section, compute, most, recipe.seed, continues=recipe.model.start is not None)
    stop = StopRequest(insistent=processes.is_alone)
    metrics = [MetricsFile(states.folder.start_metrics)] if processes.is_first else []
    with (
        Tracking(metrics, progress.note) as tracking,
        stop.on_signals(),
        progress.stage("start on features", section.epochs * len(train), "slides") as advance,
    ):
        keeper = CheckpointKeeper(start.best, card, tracking, advance, select=section.select, phase="start on features")
        if processes.is_first:
            keeper.begin()
        trainer = Trainer(net, settings, processes=processes, listener=keeper)
        trainer.fit(train, val, file=StateFile(start.folder / "state.safetensors", start.fingerprint), stop=stop)
    with processes.ahead() as is_first:
        if is_first:
            start.finish(trunk)
    return start.checkpoint


def _network(
    recipe: Recipe, cohort: TrainingCohort, processes: Processes, wanted: str
) -> tuple[ModelCard, IpsNet, nn.Module | None]:
    """Build the network without its trunk, nothing of it frozen; return also its card and the trunk."""
    manual_seed(recipe.seed)
    model, plan = recipe.model.model_copy(update={"freeze": "none", "lora_rank": 0}), cohort.encoder_plan(recipe.model)
    card = replace(cohort.card(recipe, plan), fingerprint=wanted)
    net, trunk = build_network(model, card, plan, processes=processes, on_features=True)
    return replace(card, encoder=net.encoder.spec), net, trunk


def _sources(recipe: Recipe, cohort: TrainingCohort, places: RunFolder) -> list[FeatureSource]:
    """Return the features of plain tiles, and of tiles in augmented views; of stored features there is one view."""
    if cohort.features is not None:
        return [cohort.features]
    plain = feature_source(replace(FeaturePlan.of(recipe, places), imported=None), cohort.slides)
    strengths, views = recipe.training.augment, range(1, feature_views(recipe))
    return [plain, *(plain.seen_in(FeatureView(number, strengths, recipe.seed)) for number in views)]


def _due(sources: Sequence[FeatureSource], cohort: TrainingCohort) -> list[tuple[FeatureSource, list[SlideRecord]]]:
    """Return the slides whose features are missing: training slides in all views, validation slides as they are."""
    wanted = [(source, [*cohort.train, *(cohort.val if source.view is None else ())]) for source in sources]
    due = [(source, [r for r in records if not source.has(r)]) for source, records in wanted]
    return [(source, records) for source, records in due if records]


def _require_room(
    due: Sequence[tuple[FeatureSource, list[SlideRecord]]], width: int, states: StateTable, progress: Progress
) -> None:
    """Say how large the features will be; refuse what does not fit on the disk."""
    if not due:
        return
    tiles, root = sum(states[r.slide_id].tiles or 0 for _, records in due for r in records), due[0][0].plan.root
    size, free = tiles * width * BYTES_PER_VALUE, shutil.disk_usage(_existing(root)).free
    progress.note(f"the start embeds {tiles:,} tiles, all views counted; {size / 1e9:.2g} GB in {root}")
    if size > MOST_OF_THE_DISK * free:
        raise FeaturesError(
            f"features of {tiles:,} tiles take {size / 1e9:.3g} GB, and {root} has {free / 1e9:.3g} GB free: set "
            "`features.location` to a larger disk, fewer `training.start_views`, or another `training.start`"
        )


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
