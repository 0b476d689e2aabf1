"""All stages in order: tile, features (where they are learned from), train, predict, heatmap, report.

Those that learn are loaded when they are come to.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_ips.config import Recipe
from wsi_ips.model.calibration import Calibration
from wsi_ips.model.card import read_card
from wsi_ips.pipeline.progress import Progress, Silent
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.states import STATES, SlideState
from wsi_ips.pipeline.tiling.synth import synth_stage
from wsi_ips.pipeline.tiling.tile import tile_stage

if TYPE_CHECKING:
    from wsi_ips.pipeline.prediction.predictions import PredictedSlide


@dataclass(frozen=True)
class Outcome:
    """What a whole run came to.

    Attributes
    ----------
    summary
        As in ``summary.json``.
    states
        State of every slide.
    report
        The page to open.
    failed
        Slides that failed.
    worked
        Whether anything was computed; False where all was up to date.
    """

    summary: dict[str, Any]
    states: Iterable[SlideState]
    report: Path
    failed: int
    worked: bool

    def lines(self) -> list[tuple[str, str]]:
        """Headline figures for the terminal."""
        from wsi_ips.pipeline.report.page import headline

        return [(name, f"{value}  {note}".strip()) for name, value, note in headline(self.summary)]


@dataclass(frozen=True)
class Predictions:
    """What a prediction came to.

    Attributes
    ----------
    run
        The run.
    calibration
        How probabilities were read.
    slides
        Those that were asked for.
    """

    run: Run
    calibration: Calibration
    slides: Sequence[PredictedSlide]

    @property
    def failed(self) -> int:
        """Slides that were asked for and failed."""
        return sum(slide.state == "failed" for slide in self.slides)


def run_pipeline(recipe: Recipe, progress: Progress | None = None) -> Outcome:
    """Run all stages; what is up to date is left as it is.

    Parameters
    ----------
    recipe
        The whole recipe.
    progress
        Who watches; nobody by default.

    Raises
    ------
    WsiIpsError
        The recipe, the manifest, the training or the checkpoint cannot be used. A slide that cannot be
        used is no error: it ends as ``failed`` in ``slides.csv``.
    """
    from wsi_ips.pipeline.learning.train import joined, train_stage
    from wsi_ips.pipeline.maps.handoff import handoff_stage
    from wsi_ips.pipeline.maps.heatmap import heatmap_stage
    from wsi_ips.pipeline.prediction.predict import predict_stage
    from wsi_ips.pipeline.report.page import report_stage

    began = time.monotonic()
    watcher = progress or Silent()
    with ExitStack() as opened:
        world = opened.enter_context(joined(recipe))
        with world.ahead():
            worked = synth_stage(recipe, watcher)
            run = opened.enter_context(Run.open(recipe, watcher))
            worked = bool(tile_stage(run)) or worked
            worked = _features(run) or worked
        worked = train_stage(run, world) or worked
        worked = bool(predict_stage(run)) or worked
        worked = bool(heatmap_stage(run)) or worked
        worked = bool(handoff_stage(run)) or worked
        stored = None if worked else _stored_summary(run)
        summary = stored or report_stage(run, seconds=time.monotonic() - began)
    if stored:
        watcher.note("everything is up to date; nothing was computed")
    return Outcome(summary, run.states, run.folder.report, run.states.count("failed"), worked)


def predict_slides(
    recipe: Recipe, slides: Sequence[str], *, heatmaps: bool, progress: Progress | None = None
) -> Predictions:
    """Tile and predict slides with a trained model, and draw them where asked.

    Parameters
    ----------
    recipe
        The whole recipe.
    slides
        slide_ids; none: those of `predict.splits` and those without a split.
    heatmaps
        Whether to draw their maps.
    progress
        Who watches; nobody by default.
    """
    from wsi_ips.pipeline.facts import write_facts
    from wsi_ips.pipeline.prediction.predict import predict_stage, to_predict
    from wsi_ips.pipeline.prediction.predictions import predicted_slides
    from wsi_ips.pipeline.prediction.scored import checkpoint_folder, model_calibration

    watcher = progress or Silent()
    synth_stage(recipe, watcher)
    with Run.open(recipe, watcher) as run:
        records = to_predict(run, slides)
        names = [record.slide_id for record in records]
        read_card(checkpoint_folder(run))  # before anything is worked on
        tile_stage(run, only=set(names))
        if recipe.features.imported is not None:  # where they are not, a model sees what the slides show
            _features(run, names)
        predict_stage(run, slides)
        if heatmaps and names:
            _drawn_stages(run, names)
        if recipe.predict.checkpoint is not None or not run.folder.facts.exists():
            write_facts(run)  # `wsi-ips view FOLDER` needs it; where a run was trained, it stays that of the whole run
        calibration = model_calibration(run)
        return Predictions(run, calibration, predicted_slides(run, records, calibration))


def run_until(recipe: Recipe, last: str, progress: Progress | None = None, *, slides: Sequence[str] = ()) -> Run:
    """Run one stage and what it needs before it.

    Parameters
    ----------
    recipe
        The whole recipe.
    last
        ``tile``, ``features`` (tiles first), ``train`` (tiles first, and features where they are learned from),
        ``predict`` (tiles first, needs a checkpoint) or ``heatmap`` (needs predictions).
    progress
        Who watches; nobody by default.
    slides
        Only these slides, for ``features``, ``predict`` and ``heatmap``.
    """
    watcher = progress or Silent()
    if last == "train":
        return _train(recipe, watcher)
    synth_stage(recipe, watcher)
    with Run.open(recipe, watcher) as run:
        if last == "tile":
            tile_stage(run)
        elif last == "features":
            from wsi_ips.pipeline.learning.features_stage import features_stage

            tile_stage(run, only=set(slides) or None)
            features_stage(run, slides)
        elif last == "heatmap":
            _drawn_stages(run, slides)
        else:
            _predict(run, slides)
    return run


def _train(recipe: Recipe, watcher: Progress) -> Run:
    from wsi_ips.pipeline.learning.train import joined, train_stage

    with ExitStack() as opened:
        world = opened.enter_context(joined(recipe))
        with world.ahead():
            synth_stage(recipe, watcher)
            run = opened.enter_context(Run.open(recipe, watcher))
            tile_stage(run)
            _features(run)
        train_stage(run, world)
    return run


def _drawn_stages(run: Run, slides: Sequence[str]) -> None:
    """What is made from stored scores; it needs no torch, and starts without it."""
    from wsi_ips.pipeline.maps.handoff import handoff_stage
    from wsi_ips.pipeline.maps.heatmap import heatmap_stage

    heatmap_stage(run, slides)
    handoff_stage(run, slides)


def _predict(run: Run, slides: Sequence[str]) -> None:
    """A stage that needs torch; tiling must work where it is not installed."""
    from wsi_ips.pipeline.prediction.predict import predict_stage, to_predict

    tile_stage(run, only={record.slide_id for record in to_predict(run, slides)})
    if run.recipe.features.imported is not None:  # where they are not, a model sees what the slides show
        _features(run, slides)
    predict_stage(run, slides)


def _features(run: Run, slides: Sequence[str] = ()) -> bool:
    """Store features where the recipe learns from them; whether anything was done."""
    from wsi_ips.pipeline.learning.features_stage import features_stage

    return run.recipe.model.input == "features" and bool(features_stage(run, slides))


def _stored_summary(run: Run) -> dict[str, Any] | None:
    """The summary of the run as it stands, None where it or the page is missing or older than the states."""
    try:
        stored: dict[str, Any] = json.loads(run.folder.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    counted = all(stored.get(f"slides_{s}") == run.states.count(s) for s in STATES)
    return stored if counted and run.folder.report.exists() else None
