"""The start `features`: pooling and heads learn on features of all tiles, before training selects tiles.

The encoder as it is embeds every tile of the training slides, once plain and again in augmented views, and every tile
of the validation slides once. Projector, pooling and heads then learn on all tiles of a slide, so even a lesion of a
few tiles is in every step. Training goes on from the best epoch, with selection by its attention.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import manual_seed

from wsi_ips.config import AugmentSection, PlannedTraining, Recipe, TrainingSection
from wsi_ips.errors import FeaturesError
from wsi_ips.model.checkpoint import add_trunk, save_checkpoint
from wsi_ips.model.checkpoint_card import CARD_NAME, ModelCard, read_card
from wsi_ips.model.net import IpsNet
from wsi_ips.pipeline.feature_source import FeaturePlan, FeatureSource, feature_source
from wsi_ips.pipeline.features_stage import compute_features
from wsi_ips.pipeline.progress import Progress
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.slide_states import StateTable
from wsi_ips.pipeline.train_cohort import TrainingCohort
from wsi_ips.provenance import fingerprint
from wsi_ips.training.loop import Trainer
from wsi_ips.training.model_building import EncoderPlan, build_network, frozen_encoder
from wsi_ips.training.processes import Processes
from wsi_ips.training.resume import StateFile, StopRequest
from wsi_ips.training.settings import Listener, Settings
from wsi_ips.training.starts import STARTS
from wsi_ips.training.tracking import EpochRecord, MetricsFile
from wsi_ips.training.validation import best_epoch

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


def start_on_features(
    recipe: Recipe,
    cohort: TrainingCohort,
    states: StateTable,
    places: RunFolder,
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
    start = HeadStart.of(places, cohort.fingerprint)
    if processes.from_first(start.is_finished):
        return start.checkpoint
    sources = _sources(recipe, cohort, places)
    with processes.ahead() as is_first:
        if is_first:
            store_features(sources, cohort, states, recipe, progress)
    plan = cohort.encoder_plan(recipe.model)
    manual_seed(recipe.seed)
    model = recipe.model.model_copy(update={"freeze": "none", "lora_rank": 0})
    card = replace(cohort.card(recipe, plan), fingerprint=start.fingerprint)
    net, trunk = build_network(model, card, plan, processes=processes, on_features=True)
    section = head_section(recipe.training, len(cohort.train))
    train, val = cohort.labelled(cohort.train, *sources), cohort.labelled(cohort.val, sources[0])
    most = max(len(slide.tiles.index) for slide in (*train, *val))
    compute = recipe.compute.model_copy(update={"slides_at_once": recipe.compute.slides_at_once or 1})
    continues = recipe.model.start is not None
    settings = Settings(section, compute, min(most, MOST_TILES), recipe.seed, continues=continues)
    listener = StartListener(start, replace(card, encoder=net.encoder.spec), section, places.start_metrics, progress.note)
    trainer = Trainer(net, settings, processes=processes, listener=listener)
    stop = StopRequest(insistent=processes.is_alone)
    with stop.on_signals(), progress.stage("start on features", section.epochs * len(train), "slides") as advance:
        listener.advance = advance
        trainer.fit(train, val, file=StateFile(start.folder / "state.safetensors", start.fingerprint), stop=stop)
    with processes.ahead() as is_first:
        if is_first:
            if trunk is not None:
                add_trunk(start.best, trunk)
            shutil.rmtree(start.checkpoint, ignore_errors=True)
            start.best.rename(start.checkpoint)
    return start.checkpoint
