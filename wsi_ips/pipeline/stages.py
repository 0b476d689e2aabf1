"""Run the stages in order: tile, features, train, predict, heatmap (with the hand-off packages), report.

This module gives each stage what it needs of a run; no stage sees the run. Stages that need torch are imported when
they run: tiling works where torch is not installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_ips.config import Recipe
from wsi_ips.errors import RecipeError
from wsi_ips.evaluation.calibration import Calibration
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint_card import read_card
from wsi_ips.pipeline.progress import Progress, Silent
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.run_folder import write_facts
from wsi_ips.pipeline.slide_states import STATES, SlideState
from wsi_ips.pipeline.tile_stage import Retried, restore_failed, tile_stage
from wsi_ips.pipeline.tissue_sheet import sheet_stage
from wsi_ips.provenance import parse_object
from wsi_ips.training.starts import STARTS as TRAINING_STARTS

if TYPE_CHECKING:
    from wsi_ips.pipeline.slide_predictions import PredictedSlide
    from wsi_ips.training.processes import Processes


@dataclass(frozen=True)
class Outcome:
    """Result of a run."""

    summary: dict[str, Any]  # content of ``summary.json``; empty where the run ended before the report
    states: Iterable[SlideState]
    report: Path  # the page to open
    failed: int  # number of failed slides
    worked: bool  # whether anything was computed; False where everything was up to date


@dataclass(frozen=True)
class Predictions:
    """Result of a prediction."""

    run: Run
    calibration: Calibration  # how scores became probabilities
    slides: Sequence[PredictedSlide]  # the requested slides

    @property
    def failed(self) -> int:
        """Number of requested slides that failed."""
        return sum(slide.state == "failed" for slide in self.slides)


def run_pipeline(recipe: Recipe, progress: Progress | None = None, until: str = "report") -> Outcome:
    """Run all stages in order, up to ``until``, one of :data:`STAGES`; a stage skips what is up to date.

    ``until="features"`` stores features also where the recipe learns from pixels. A slide that cannot be used is no
    error: its state becomes ``failed``.

    Raises
    ------
    WsiIpsError
        The recipe, the manifest, the training or the checkpoint cannot be used.
    """
    if until not in STAGES:
        raise RecipeError(f"stage `{until}`: known are {', '.join(STAGES)}")
    began = time.monotonic()
    listener = progress or Silent()
    with _stages_done(recipe, listener, [name for name in _up_to(until) if name != "report"]) as (run, worked):
        summary = None if worked or until != "report" else _stored_summary(run)
        if summary:
            listener.note("everything is up to date; nothing was computed")
        elif until == "report":
            summary = report(run, seconds=time.monotonic() - began)
    return Outcome(summary or {}, run.states, run.folder.report, run.states.count("failed"), worked)


def run_stage(recipe: Recipe, name: str, progress: Progress | None = None, *, slides: Sequence[str] = ()) -> Run:
    """Run one of :data:`STAGES` and what it needs, and return the run.

    ``train`` needs tiles, and features where the recipe learns from them; ``features`` needs tiles; ``predict`` tiles
    and a checkpoint; ``heatmap`` predictions. These three may be limited to some ``slides``.
    """
    of_slides = STAGES[name].of_slides
    if of_slides is None:
        with _stages_done(recipe, progress or Silent(), _up_to(name)) as (run, _):
            return run
    with Run.open(recipe, progress, writes=True) as run:
        of_slides(run, slides)
    return run


def predict_slides(
    recipe: Recipe, slides: Sequence[str], *, heatmaps: bool, progress: Progress | None = None
) -> Predictions:
    """Tile and predict slides, or those of `predict.splits` and without a split; draw their maps on request."""
    from wsi_ips.pipeline.slide_predictions import predicted_slides

    with Run.open(recipe, progress, writes=True) as run:
        records = _tile_and_predict(run, slides)
        if heatmaps and records:
            draw(run, [record.slide_id for record in records])
        if recipe.predict.checkpoint is not None or not run.folder.facts.exists():
            write_facts(run.folder, run.recipe, run.slides.records)  # for `wsi-ips view`; those of a training are kept
        calibration = run.predictions.calibration()
        found = predicted_slides(run.predictions, records, calibration, run.recipe.heatmap.maps[0])
        return Predictions(run, calibration, found)


def train_encoder_file(
    recipe: Recipe, path: Path, *, splits: Sequence[str] = ("train",), progress: Progress | None = None
) -> None:
    """Train an encoder without labels on the slides of some splits, and write its weights for ``model.weights``.

    Tiles the slides first. Resumes where an earlier call was stopped. Processes that `torchrun` started share out the
    work.
    """
    from wsi_ips.pipeline.encoder_stage import EncoderJob, encoder_stage
    from wsi_ips.pipeline.train_stage import joined

    job = EncoderJob(path, splits, recipe.training.start_steps or TRAINING_STARTS["self-supervised"].steps)
    with joined(recipe.compute.device) as processes:
        with processes.ahead() as is_first:
            if is_first:
                run_stage(recipe, "tile", progress)
        with Run.open(recipe, progress, writes=processes.is_first) as run:
            encoder_stage(run.recipe, run.slides, run.states, run.progress, processes, job)


def train_along(recipe: Recipe) -> None:
    """Run any process of `torchrun` but the first: wait until the slides are tiled, then train with the others."""
    from wsi_ips.pipeline.train_stage import joined

    with joined(recipe.compute.device) as processes:
        with processes.ahead():
            pass
        with Run.open(recipe) as run:
            train(run, processes)


def retry(run: Run, reason: str = "", names: Sequence[str] = ()) -> Retried:
    """Tile failed slides again; those that failed after tiling become ready for the stage that failed.

    ``names`` and ``reason`` (part of the text, in any case) limit the slides.
    """
    found = restore_failed(run.slides, run.states, reason, names)
    if found.tiled:
        tile(run, found.tiled)
    return found


def tile(run: Run, slides: Sequence[str] = ()) -> int:
    """Tile slides, draw the contact sheet, and return the number of slides worked on."""
    worked = tile_stage(run.slides, run.states, run.recipe.compute, run.progress, slides or None)
    if worked:
        sheet_stage(run.recipe.name, run.slides.records, run.states)
    return worked


def store_features(run: Run, slides: Sequence[str] = ()) -> int:
    """Store the features of slides and return the number of slides worked on."""
    from wsi_ips.pipeline.features_stage import features_stage

    return features_stage(run.features, run.slides, run.states, run.recipe.compute, run.progress, slides)


def train(run: Run, processes: Processes | None = None) -> bool:
    """Train the model and return whether anything was learned; without ``processes`` alone."""
    from wsi_ips.pipeline.train_stage import train_stage

    return train_stage(run.recipe, run.slides, run.states, run.progress, processes)


def predict(run: Run, slides: Sequence[str] = ()) -> int:
    """Predict slides and return the number of slides worked on."""
    from wsi_ips.pipeline.predict_stage import predict_stage

    return predict_stage(run.predictions, run.features, run.recipe.compute, slides)


def draw(run: Run, slides: Sequence[str] = ()) -> int:
    """Draw maps and make hand-off packages from stored scores, and return the number of both; needs no torch."""
    from wsi_ips.pipeline.heatmap_stage import handoff_stage, heatmap_stage

    drawn = heatmap_stage(run.maps, slides)
    return drawn + handoff_stage(run.maps, slides)


def report(run: Run, seconds: float | None = None) -> dict[str, Any]:
    """Write figures and report of what is stored; ``seconds`` as in :func:`wsi_ips.pipeline.report_stage`."""
    from wsi_ips.pipeline.report_stage import report_stage

    return report_stage(run.recipe, run.predictions, seconds=seconds)


def _tile_and_store_features(run: Run, slides: Sequence[str]) -> None:
    tile(run, slides)
    store_features(run, slides)


def _tile_and_predict(run: Run, slides: Sequence[str]) -> list[SlideRecord]:
    """Tile and predict the named slides, or those of `predict.splits`, and return their records."""
    from wsi_ips.pipeline.predict_stage import to_predict

    records = to_predict(run.predictions, slides)
    names = [record.slide_id for record in records]
    read_card(run.predictions.checkpoint)  # fails before anything is computed
    if names:
        tile(run, names)
    if run.recipe.features.imported is not None:  # without them, the model computes features from pixels
        store_features(run, names)
    predict(run, slides)
    return records


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    work: Callable[[Run], object]  # on all slides, after the stages before it; false where all was up to date
    # The stage and what it needs, on the named slides (none: all); None where it needs all stages before it
    of_slides: Callable[[Run, Sequence[str]], object] | None = None


STAGES = {
    "tile": Stage(tile),
    "features": Stage(store_features, _tile_and_store_features),
    "train": Stage(train),
    "predict": Stage(predict, _tile_and_predict),
    "heatmap": Stage(draw, draw),
    "report": Stage(report),
}


def _up_to(last: str) -> list[str]:
    names = list(STAGES)
    return names[: names.index(last) + 1]


@contextmanager
def _stages_done(recipe: Recipe, progress: Progress, names: Sequence[str]) -> Iterator[tuple[Run, bool]]:
    """Run stages in order, then yield the open run and whether anything was computed.

    Features are stored where the recipe learns from them, or where they are the last stage. Where `torchrun` started
    several processes, the others wait while the first runs the stages before training.
    """
    uses_features = recipe.model.input == "features" or names[-1] == "features"
    stages = [name for name in names if name != "features" or uses_features]
    at = stages.index("train") if "train" in stages else len(stages)
    with ExitStack() as opened:
        world = None
        if at < len(stages):
            from wsi_ips.pipeline.train_stage import joined

            world = opened.enter_context(joined(recipe.compute.device))
        with world.ahead() if world else nullcontext():
            run = opened.enter_context(Run.open(recipe, progress, writes=True))
            worked = [STAGES[name].work(run) for name in stages[:at]]
        if world:
            worked.append(train(run, world))
        worked += [STAGES[name].work(run) for name in stages[at + 1 :]]
        yield run, any(worked)


def _stored_summary(run: Run) -> dict[str, Any] | None:
    """Return the stored summary; None where it or the page is missing or older than the states."""
    try:
        stored = parse_object(run.folder.summary.read_bytes())
    except (OSError, ValueError):
        return None
    counted = all(stored.get(f"slides_{s}") == run.states.count(s) for s in STATES)
    return stored if counted and run.folder.report.exists() else None
