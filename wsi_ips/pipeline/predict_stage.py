"""Stage ``predict``: the label and the tile scores of every slide, in the command's process or in workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wsi_ips.cluster.jobs import spread, timeout_s
from wsi_ips.cluster.process import NUMBER, Job
from wsi_ips.config import ComputeSection
from wsi_ips.errors import CheckpointError, FeaturesError
from wsi_ips.inference.preparation import check_preparation
from wsi_ips.inference.slide_prediction import predict_slide
from wsi_ips.inference.slide_scores import write_scores
from wsi_ips.labels import Task
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint import load_checkpoint, require_tasks
from wsi_ips.model.checkpoint_card import checkpoint_fingerprint, read_card
from wsi_ips.model.encoders import encoder_remarks
from wsi_ips.model.scan_backends import SCAN_BACKENDS
from wsi_ips.pipeline.feature_source import FeaturePlan, FeatureSource, feature_source
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.pipeline.slide_predictions import RunPredictions, calibrate, write_predictions
from wsi_ips.pipeline.slide_states import DONE
from wsi_ips.scanning import ChunkLimit, ScanOptions, choose_device
from wsi_ips.tiles.feature_store import FeatureTiles
from wsi_ips.tiles.stream import SlideTiles

PREDICT_JOB = f"{__name__}:predict_job"


@dataclass(frozen=True)
class Scoring:
    """What decides how slides are scored, and where to: the same for all slides of a call."""

    checkpoint: Path
    model: str  # fingerprint of the checkpoint
    tasks: tuple[Task, ...]  # those that the checkpoint must have
    features: FeaturePlan
    compute: ComputeSection
    scores: Path  # folder of the score tables


def to_predict(predictions: RunPredictions, names: Sequence[str] = ()) -> list[SlideRecord]:
    """Return the slides to predict: the named ones, else those of the recipe's splits and those without a split."""
    slides, wanted = predictions.slides, (*predictions.section.splits, None)
    return slides.named(names) if names else [record for record in slides.records if record.split in wanted]


def predict_stage(
    predictions: RunPredictions, features: FeaturePlan, compute: ComputeSection, names: Sequence[str] = ()
) -> int:
    """Predict all slides whose scores are out of date; return the number of slides predicted."""
    folder, states, tasks = predictions.checkpoint, predictions.states, predictions.labels.tasks
    card = read_card(folder)
    require_tasks(folder, card, tasks)
    check_preparation(predictions.slides.tiling, card)
    model = checkpoint_fingerprint(folder)
    slides = states.with_tiles(to_predict(predictions, names))
    if card.encoder.features:  # leave out slides whose features were refused; the reason is in the table of states
        of = {record.slide_id: states[record.slide_id] for record in slides}
        slides = [r for r in slides if (of[r.slide_id].state, of[r.slide_id].stage) != ("failed", "features")]
    due = [record for record in slides if not predictions.has(record, model, whole=True)]
    if due:
        for text in encoder_remarks(card.encoder.name):
            predictions.progress.note(text)
        scoring = Scoring(folder, model, tasks, features, compute, predictions.folder.scores)
        total = sum(states[record.slide_id].tiles or 0 for record in due)
        with predictions.progress.stage("prediction", total, "tiles") as advance:
            predict = _predict_spread if compute.predict_workers else _predict_here
            predict(predictions, scoring, due, advance)
        states.save()
    write_predictions(predictions, calibrate(predictions))
    return len(due)


def _predict_here(
    predictions: RunPredictions, scoring: Scoring, due: Sequence[SlideRecord], advance: Callable[[int], None]
) -> None:
    """Predict one slide after another, in this process and on one device."""
    predictor = Predictor(scoring, choose_device(scoring.compute.device), predictions.progress.note)
    for record in due:
        wanted = predictions.fingerprint(record, scoring.model)
        work = partial(predictor, predictions.slides, record, wanted, advance)
        predictions.states.fence(record.slide_id, "predict", work)


def _predict_spread(
    predictions: RunPredictions, scoring: Scoring, due: Sequence[SlideRecord], advance: Callable[[int], None]
) -> None:
    """Predict slides in several processes, each of which loads the network once; start with the largest slides."""
    compute, states = scoring.compute, predictions.states
    threads = max(1, (os.cpu_count() or 1) // compute.predict_workers) if compute.scheduler is None else 1
    tiles = {record.slide_id: states[record.slide_id].tiles or 0 for record in due}
    jobs = []
    for record in sorted(due, key=lambda record: -tiles[record.slide_id]):
        wanted = predictions.fingerprint(record, scoring.model)
        task = PredictTask(scoring, predictions.slides.alone(record), wanted, threads)
        jobs.append(Job(record.slide_id, PREDICT_JOB, task, timeout_s(compute, tiles[record.slide_id])))
    with spread(compute.model_copy(update={"workers": compute.predict_workers}), jobs) as outcomes:
        for outcome in outcomes:
            if outcome is not None:
                seconds, notes = outcome.result.value or (0.0, [])
                for text in notes:
                    predictions.progress.note(text)
                states.record(outcome, "predict", DONE | {"seconds": seconds})
                advance(tiles[outcome.job.name])


class Predictor:
    """A loaded checkpoint that predicts slide after slide."""

    def __init__(self, scoring: Scoring, device: torch.device, note: Callable[[str], None]) -> None:
        self.scoring, self.note = scoring, note
        folder, compute = scoring.checkpoint, scoring.compute
        self.net, self.card = load_checkpoint(folder, tasks=scoring.tasks)
        if checkpoint_fingerprint(folder) != scoring.model:
            raise CheckpointError(f"checkpoint {folder}: changed while slides were predicted; predict again")
        self.net.to(device)
        SCAN_BACKENDS[compute.scan_backend].check(self.net.encoder, self.card.patch_px)
        self._source: FeatureSource | None = None
        tell = lambda text: self.note(text)  # noqa: E731, PLW0108 - `note` is replaced between slides
        self._limit = ChunkLimit(compute.chunk_size, tell)

    def _input(self, slides: RunSlides, record: SlideRecord) -> SlideTiles:
        """Return the slide's stored features if they are up to date, else its pixels, which give the same features."""
        encoder, plan = self.card.encoder, self.scoring.features
        if plan.model.input == "features":
            if self._source is None or self._source.files is not None:
                self._source = feature_source(plan, slides, self.net.encoder)
            source = replace(self._source, plan=plan, slides=slides)
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
        return slides.tiles(record)

    def __call__(
        self, slides: RunSlides, record: SlideRecord, fingerprint: str, on_tiles: Callable[[int], None] = lambda _: None
    ) -> float:
        """Predict a slide, store its scores, and return the seconds it took."""
        compute = self.scoring.compute
        options = ScanOptions(self.card.memory_size, compute, self._limit, on_tiles=on_tiles)
        tiles = self._input(slides, record)
        scores = predict_slide(self.net, tiles, options, fingerprint=fingerprint)
        if not isinstance(tiles, FeatureTiles):
            slides.require_same_content(record, tiles.index.slide_identity)
        if scores.check:
            used = "" if scores.check.holds else "; too far from fp32, which was used instead"
            self.note(f"slide {record.slide_id}: {compute.scan_backend} scan: {scores.check}{used}")
        write_scores(self.scoring.scores, scores)
        return scores.seconds


@dataclass(frozen=True)
class PredictTask:
    """One slide to predict in another process."""

    scoring: Scoring
    slides: RunSlides  # this slide alone
    fingerprint: str  # to store with the scores
    threads: int  # CPU threads of the process


_kept: dict[tuple[Any, ...], Predictor] = {}  # network of the last slide; most slides share it


def predict_job(task: PredictTask) -> tuple[float, list[str]]:
    """Predict a slide in this process; return the seconds it took, and messages for people."""
    torch.set_num_threads(task.threads)
    notes: list[str] = []
    scoring, compute = task.scoring, task.scoring.compute
    key = (scoring.checkpoint, scoring.model, compute.scan_backend, compute.chunk_size, compute.device)
    predictor = _kept.get(key)
    if predictor is None:
        _kept.clear()
        predictor = _kept[key] = Predictor(scoring, own_device(compute.device), notes.append)
    predictor.scoring, predictor.note = scoring, notes.append
    with task.slides as slides:
        (record,) = slides.records
        return predictor(slides, record, task.fingerprint), notes


def own_device(wanted: str) -> torch.device:
    """Return the device of this process; where it may choose among GPUs, its number among the processes decides."""
    device = choose_device(wanted)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get(NUMBER, "0")) % torch.cuda.device_count())
    return device
