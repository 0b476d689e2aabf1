"""A network on its device, and what it does to a slide of a run: in the command's process or in one of a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wsi_ips.cluster.process import NUMBER
from wsi_ips.config import Recipe
from wsi_ips.errors import CheckpointError, FeaturesError
from wsi_ips.inference import predict_slide, write_scores
from wsi_ips.manifest import SlideRecord
from wsi_ips.model import load_checkpoint
from wsi_ips.model.card import checkpoint_fingerprint
from wsi_ips.model.int8 import Int8Exporter
from wsi_ips.pipeline.learning.feature_source import FeatureSource, feature_source
from wsi_ips.pipeline.run import Run
from wsi_ips.scanning import ChunkLimit, choose_device
from wsi_ips.tiles import SlideTiles

PREDICT_JOB = f"{__name__}:predict_job"


class Predictor:
    """A loaded checkpoint that predicts slide after slide.

    Parameters
    ----------
    recipe
        Of the run.
    folder
        Of the checkpoint.
    model
        Fingerprint that the checkpoint must have.
    device
        Where it computes.
    note
        Told what a person should know.

    Raises
    ------
    CheckpointError
        There is none, it was made for other classes, or it is not the one meant.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, model: str, device: torch.device, note: Callable[[str], None]
    ) -> None:
        self.device, self.note = device, note
        self.net, self.card = load_checkpoint(folder, tasks=recipe.labels.tasks)
        if checkpoint_fingerprint(folder) != model:
            raise CheckpointError(f"checkpoint {folder}: changed while slides were predicted; predict again")
        self.net.to(device)
        int8 = recipe.predict.scan_precision == "int8"
        self._int8 = Int8Exporter(self.net.encoder, self.card.patch_px) if int8 else None
        self._source: FeatureSource | None = None
        self._limit = ChunkLimit(recipe.compute.chunk_size, self._tell)

    def _tell(self, text: str) -> None:
        self.note(text)  # whoever listens at that time

    def _input(self, run: Run, record: SlideRecord) -> SlideTiles:
        """Stored features of a slide where they are up to date, else its pixels, of which a model makes the same.

        Raises
        ------
        FeaturesError
            The model knows imported features only, and this slide has none, or those of another encoder.
        """
        encoder = self.card.encoder
        if run.recipe.model.input == "features":
            if self._source is None or self._source.files is not None:
                self._source = feature_source(run, self.net.encoder)
            source = replace(self._source, run=run)
            if source.has(record):
                tiles = source.tiles(record)
                if not encoder.features or tiles.features.encoder == encoder.name:
                    return tiles
                raise FeaturesError(
                    f"slide {record.slide_id}: features of {tiles.features.encoder}, the model was trained on those of "
                    f"{encoder.name}; import the same"
                )
        if encoder.features:
            raise FeaturesError(
                f"slide {record.slide_id}: the model was trained on features of {encoder.name} and takes no pixels; "
                "set `features.imported` to a folder with a feature file of this slide, and `model.input: features`"
            )
        return run.tiles(record)

    def __call__(
        self, run: Run, record: SlideRecord, fingerprint: str, on_tiles: Callable[[int], None] = lambda _: None
    ) -> float:
        """Predict a slide and store its scores; the seconds it took."""
        scores = predict_slide(
            self.net,
            self.card,
            self._input(run, record),
            compute=run.recipe.compute,
            device=self.device,
            fingerprint=fingerprint,
            on_tiles=on_tiles,
            int8=self._int8,
            limit=self._limit,
        )
        if scores.int8:
            used = "" if scores.int8.holds else "; too far from fp32, which was used instead"
            self.note(f"slide {record.slide_id}: int8 scan: {scores.int8}{used}")
        write_scores(run.folder.scores, scores)
        return scores.seconds


@dataclass(frozen=True)
class PredictTask:
    """One slide for a process of a cluster.

    Attributes
    ----------
    recipe, record
        The run's, and the slide.
    checkpoint, model
        Folder of the checkpoint and its fingerprint.
    fingerprint
        Stored with the scores.
    threads
        Of the processor, for this process.
    """

    recipe: Recipe
    record: SlideRecord
    checkpoint: Path
    model: str
    fingerprint: str
    threads: int


@dataclass(frozen=True)
class Told:
    """What came of it: seconds, and what a person should know."""

    seconds: float
    notes: tuple[str, ...]


_kept: dict[tuple[Any, ...], Predictor] = {}
"""The network of the last slide: most slides of a process have the same."""


def predict_job(task: PredictTask) -> Told:
    """Predict a slide in this process; the network is loaded for the first one and kept for the next."""
    torch.set_num_threads(task.threads)
    notes: list[str] = []
    recipe = task.recipe
    key = (task.checkpoint, task.model, recipe.predict.scan_precision, recipe.compute.chunk_size, recipe.compute.device)
    predictor = _kept.get(key)
    if predictor is None:
        _kept.clear()
        device = own_device(recipe.compute.device)
        predictor = _kept[key] = Predictor(recipe, task.checkpoint, task.model, device, notes.append)
    predictor.note = notes.append
    with Run.of_slide(recipe, task.record) as run:
        return Told(predictor(run, task.record, task.fingerprint), tuple(notes))


def own_device(wanted: str) -> torch.device:
    """The device of this process: where it may choose among GPUs, the one of its number among its siblings."""
    device = choose_device(wanted)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get(NUMBER, "0")) % torch.cuda.device_count())
    return device
