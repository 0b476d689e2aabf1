"""Predict the slides of a run with a loaded network, in the process of the command or in one of a cluster."""

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
from wsi_ips.inference.slide_prediction import predict_slide
from wsi_ips.inference.slide_scores import write_scores
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint import load_checkpoint
from wsi_ips.model.checkpoint_card import checkpoint_fingerprint
from wsi_ips.model.scan_backends import SCAN_BACKENDS
from wsi_ips.pipeline.feature_source import FeatureSource, feature_source
from wsi_ips.pipeline.run import Run
from wsi_ips.scanning import ChunkLimit, ScanOptions, choose_device
from wsi_ips.tiles.stream import SlideTiles

PREDICT_JOB = f"{__name__}:predict_job"


class Predictor:
    """A loaded checkpoint that predicts slide after slide.

    Parameters
    ----------
    recipe
        Recipe of the run.
    folder
        Folder of the checkpoint.
    model
        Fingerprint that the checkpoint must have.
    device
        Device of the network.
    note
        Called with messages for people.

    Raises
    ------
    CheckpointError
        There is no checkpoint, or it was made for other classes, or has changed.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, model: str, device: torch.device, note: Callable[[str], None]
    ) -> None:
        self.device, self.note = device, note
        self.net, self.card = load_checkpoint(folder, tasks=recipe.labels.tasks)
        if checkpoint_fingerprint(folder) != model:
            raise CheckpointError(f"checkpoint {folder}: changed while slides were predicted; predict again")
        self.net.to(device)
        SCAN_BACKENDS[recipe.compute.scan_backend].check(self.net.encoder, self.card.patch_px)
        self._source: FeatureSource | None = None
        self._limit = ChunkLimit(recipe.compute.chunk_size, self._tell)

    def _tell(self, text: str) -> None:
        self.note(text)  # `note` may be replaced between slides

    def _input(self, run: Run, record: SlideRecord) -> SlideTiles:
        """Return the slide's stored features if they are up to date, else its pixels, which give the same features.

        Raises
        ------
        FeaturesError
            The model takes imported features only, and this slide has none, or those of another encoder.
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
        compute = run.recipe.compute
        options = ScanOptions(self.card.memory_size, compute, self._limit, on_tiles=on_tiles)
        scores = predict_slide(self.net, self._input(run, record), options, fingerprint=fingerprint)
        if scores.check:
            used = "" if scores.check.holds else "; too far from fp32, which was used instead"
            self.note(f"slide {record.slide_id}: {compute.scan_backend} scan: {scores.check}{used}")
        write_scores(run.folder.scores, scores)
        return scores.seconds


@dataclass(frozen=True)
class PredictTask:
    """One slide to predict in another process.

    Attributes
    ----------
    recipe, record
        Recipe of the run, and the slide.
    checkpoint, model
        Folder of the checkpoint and its fingerprint.
    fingerprint
        Fingerprint to store with the scores.
    threads
        CPU threads of the process.
    """

    recipe: Recipe
    record: SlideRecord
    checkpoint: Path
    model: str
    fingerprint: str
    threads: int


@dataclass(frozen=True)
class Predicted:
    """Result of a :class:`PredictTask`: seconds taken, and messages for people."""

    seconds: float
    notes: tuple[str, ...]


_kept: dict[tuple[Any, ...], Predictor] = {}
"""The predictor of the last slide, kept because most slides of a process have the same network."""


def predict_job(task: PredictTask) -> Predicted:
    """Predict a slide in this process; load the network for the first slide and keep it for the next."""
    torch.set_num_threads(task.threads)
    notes: list[str] = []
    recipe = task.recipe
    key = (task.checkpoint, task.model, recipe.compute.scan_backend, recipe.compute.chunk_size, recipe.compute.device)
    predictor = _kept.get(key)
    if predictor is None:
        _kept.clear()
        device = own_device(recipe.compute.device)
        predictor = _kept[key] = Predictor(recipe, task.checkpoint, task.model, device, notes.append)
    predictor.note = notes.append
    with Run.of_slide(recipe, task.record) as run:
        return Predicted(predictor(run, task.record, task.fingerprint), tuple(notes))


def own_device(wanted: str) -> torch.device:
    """Return the device of this process; where it may choose among GPUs, its number among the processes decides."""
    device = choose_device(wanted)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get(NUMBER, "0")) % torch.cuda.device_count())
    return device
