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
from wsi_ips.config import Recipe
from wsi_ips.errors import CheckpointError, FeaturesError
from wsi_ips.inference.preparation import check_preparation
from wsi_ips.inference.slide_prediction import predict_slide
from wsi_ips.inference.slide_scores import stored_fingerprint, write_scores
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint import load_checkpoint, require_tasks
from wsi_ips.model.checkpoint_card import checkpoint_fingerprint, read_card
from wsi_ips.model.encoders import encoder_remarks
from wsi_ips.model.scan_backends import SCAN_BACKENDS
from wsi_ips.pipeline.feature_source import FeatureSource, feature_source
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.slide_predictions import calibrate, checkpoint_folder, scores_fingerprint, write_predictions
from wsi_ips.pipeline.slide_states import DONE
from wsi_ips.scanning import ChunkLimit, ScanOptions, choose_device
from wsi_ips.tiles.stream import SlideTiles

PREDICT_JOB = f"{__name__}:predict_job"


def to_predict(run: Run, names: Sequence[str] = ()) -> list[SlideRecord]:
    """Return the slides to predict: the named ones, else those of the recipe's splits and those without a split."""
    wanted = (*run.recipe.predict.splits, None)
    return run.named(names) if names else [record for record in run.records if record.split in wanted]


def predict_stage(run: Run, names: Sequence[str] = ()) -> int:
    """Predict all slides whose scores are out of date; return the number of slides predicted."""
    folder = checkpoint_folder(run)
    card = read_card(folder)
    require_tasks(folder, card, run.recipe.labels.tasks)
    check_preparation(run.recipe, card)
    model = checkpoint_fingerprint(folder)
    slides = run.with_tiles(to_predict(run, names))
    if card.encoder.features:  # leave out slides whose features were refused; the reason is in the table of states
        states = {record.slide_id: run.states[record.slide_id] for record in slides}
        slides = [r for r in slides if (states[r.slide_id].state, states[r.slide_id].stage) != ("failed", "features")]
    due = [
        record
        for record in slides
        if stored_fingerprint(run.folder.scores, record.slide_id) != scores_fingerprint(run, record, model)
    ]
    if due:
        for text in encoder_remarks(card.encoder.name):
            run.progress.note(text)
        total = sum(run.states[record.slide_id].tiles or 0 for record in due)
        with run.progress.stage("prediction", total, "tiles") as advance:
            (_predict_spread if run.recipe.compute.predict_workers else _predict_here)(run, due, model, advance)
        run.states.save()
    write_predictions(run, calibrate(run))
    return len(due)


def _predict_here(run: Run, due: Sequence[SlideRecord], model: str, advance: Callable[[int], None]) -> None:
    """Predict one slide after another, in this process and on one device."""
    device = choose_device(run.recipe.compute.device)
    predictor = Predictor(run.recipe, checkpoint_folder(run), model, device, run.progress.note)
    for record in due:
        work = partial(predictor, run, record, scores_fingerprint(run, record, model), advance)
        run.states.fence(record.slide_id, "predict", work)


def _predict_spread(run: Run, due: Sequence[SlideRecord], model: str, advance: Callable[[int], None]) -> None:
    """Predict slides in several processes, each of which loads the network once; start with the largest slides."""
    compute = run.recipe.compute
    threads = max(1, (os.cpu_count() or 1) // compute.predict_workers) if compute.scheduler is None else 1
    tiles = {record.slide_id: run.states[record.slide_id].tiles or 0 for record in due}
    jobs = []
    for record in sorted(due, key=lambda record: -tiles[record.slide_id]):
        wanted = scores_fingerprint(run, record, model)
        task = PredictTask(run.recipe, record, checkpoint_folder(run), model, wanted, threads)
        jobs.append(Job(record.slide_id, PREDICT_JOB, task, timeout_s(compute, tiles[record.slide_id])))
    with spread(compute.model_copy(update={"workers": compute.predict_workers}), jobs) as outcomes:
        for outcome in outcomes:
            if outcome is not None:
                seconds, notes = outcome.result.value or (0.0, [])
                for text in notes:
                    run.progress.note(text)
                run.states.record(outcome, "predict", DONE | {"seconds": seconds})
                advance(tiles[outcome.job.name])


class Predictor:
    """A loaded checkpoint with the fingerprint ``model`` that predicts slide after slide."""

    def __init__(
        self, recipe: Recipe, folder: Path, model: str, device: torch.device, note: Callable[[str], None]
    ) -> None:
        self.note = note
        self.net, self.card = load_checkpoint(folder, tasks=recipe.labels.tasks)
        if checkpoint_fingerprint(folder) != model:
            raise CheckpointError(f"checkpoint {folder}: changed while slides were predicted; predict again")
        self.net.to(device)
        SCAN_BACKENDS[recipe.compute.scan_backend].check(self.net.encoder, self.card.patch_px)
        self._source: FeatureSource | None = None
        tell = lambda text: self.note(text)  # noqa: E731, PLW0108 - `note` is replaced between slides
        self._limit = ChunkLimit(recipe.compute.chunk_size, tell)

    def _input(self, run: Run, record: SlideRecord) -> SlideTiles:
        """Return the slide's stored features if they are up to date, else its pixels, which give the same features."""
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
        """Predict a slide, store its scores, and return the seconds it took."""
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
    """One slide to predict in another process."""

    recipe: Recipe
    record: SlideRecord
    checkpoint: Path
    model: str  # fingerprint of the checkpoint
    fingerprint: str  # to store with the scores
    threads: int  # CPU threads of the process


_kept: dict[tuple[Any, ...], Predictor] = {}  # network of the last slide; most slides share it


def predict_job(task: PredictTask) -> tuple[float, list[str]]:
    """Predict a slide in this process; return the seconds it took, and messages for people."""
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
        return predictor(run, task.record, task.fingerprint), notes


def own_device(wanted: str) -> torch.device:
    """Return the device of this process; where it may choose among GPUs, its number among the processes decides."""
    device = choose_device(wanted)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get(NUMBER, "0")) % torch.cuda.device_count())
    return device
