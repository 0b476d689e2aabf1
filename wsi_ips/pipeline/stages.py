"""Run the stages in order: tile, features, train, predict, heatmap (with the hand-off packages), report.

Stages that need torch import it lazily: tiling works where torch is not installed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_ips.config import Recipe
from wsi_ips.errors import RecipeError
from wsi_ips.evaluation.calibration import Calibration
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint_card import read_card
from wsi_ips.pipeline.run import Progress, Run, Silent, write_facts
from wsi_ips.pipeline.slide_states import STATES, SlideState
from wsi_ips.pipeline.tile_stage import tile_stage

if TYPE_CHECKING:
    from wsi_ips.pipeline.slide_predictions import PredictedSlide

STAGES = ("tile", "features", "train", "predict", "heatmap", "report")


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
    with _stages_done(recipe, listener, STAGES[: STAGES.index(until) + 1]) as (run, worked):
        summary = None if worked or until != "report" else _stored_summary(run)
        if summary:
            listener.note("everything is up to date; nothing was computed")
        elif until == "report":
            from wsi_ips.pipeline.report_stage import report_stage

            summary = report_stage(run, seconds=time.monotonic() - began)
    return Outcome(summary or {}, run.states, run.folder.report, run.states.count("failed"), worked)


def run_until(recipe: Recipe, last: str, progress: Progress | None = None, *, slides: Sequence[str] = ()) -> Run:
    """Run one stage and the stages it needs, and return the run.

    ``train`` needs tiles, and features where the recipe learns from them; ``features`` needs tiles; ``predict`` tiles
    and a checkpoint; ``heatmap`` predictions. These three may be limited to some ``slides``.
    """
    if last in ("tile", "train"):
        with _stages_done(recipe, progress or Silent(), STAGES[: STAGES.index(last) + 1]) as (run, _):
            return run
    with Run.open(recipe, progress) as run:
        if last == "features":
            tile_stage(run, only=set(slides) or None)
            _features(run, slides)
        elif last == "heatmap":
            _draw(run, slides)
        else:
            _tile_and_predict(run, slides)
    return run


def predict_slides(
    recipe: Recipe, slides: Sequence[str], *, heatmaps: bool, progress: Progress | None = None
) -> Predictions:
    """Tile and predict slides, or those of `predict.splits` and without a split; draw their maps on request."""
    from wsi_ips.pipeline.slide_predictions import model_calibration, predicted_slides

    with Run.open(recipe, progress) as run:
        records = _tile_and_predict(run, slides)
        if heatmaps and records:
            _draw(run, [record.slide_id for record in records])
        if recipe.predict.checkpoint is not None or not run.folder.facts.exists():
            write_facts(run)  # `wsi-ips view FOLDER` needs it; the facts of a training are kept
        calibration = model_calibration(run)
        return Predictions(run, calibration, predicted_slides(run, records, calibration))


@contextmanager
def _stages_done(recipe: Recipe, progress: Progress, stages: Sequence[str]) -> Iterator[tuple[Run, bool]]:
    """Run stages in order, then yield the open run and whether anything was computed.

    Where `torchrun` started several processes, the others wait while the first runs the stages before training.
    """
    at = stages.index("train") if "train" in stages else len(stages)
    with ExitStack() as opened:
        world = None
        if at < len(stages):
            from wsi_ips.pipeline.train_stage import joined

            world = opened.enter_context(joined(recipe))
        with world.ahead() if world else nullcontext():
            run = opened.enter_context(Run.open(recipe, progress))
            worked = [_stage(run, name, stages[-1]) for name in stages[:at]]
        if world:
            from wsi_ips.pipeline.train_stage import train_stage

            worked.append(train_stage(run, world))
        worked += [_stage(run, name, stages[-1]) for name in stages[at + 1 :]]
        yield run, any(worked)


def _stage(run: Run, name: str, last: str) -> bool:
    """Run one stage on all its slides and return whether it computed anything."""
    if name == "tile":
        return bool(tile_stage(run))
    if name == "features":
        return (last == "features" or run.recipe.model.input == "features") and _features(run)
    if name == "predict":
        from wsi_ips.pipeline.predict_stage import predict_stage

        return bool(predict_stage(run))
    return name == "heatmap" and _draw(run)


def _features(run: Run, slides: Sequence[str] = ()) -> bool:
    """Store the features of slides and return whether anything was done."""
    from wsi_ips.pipeline.features_stage import features_stage

    return bool(features_stage(run, slides))


def _draw(run: Run, slides: Sequence[str] = ()) -> bool:
    """Draw maps and make hand-off packages from stored scores; needs no torch."""
    from wsi_ips.pipeline.heatmap_stage import handoff_stage, heatmap_stage

    drawn = bool(heatmap_stage(run, slides))
    return bool(handoff_stage(run, slides)) or drawn


def _tile_and_predict(run: Run, slides: Sequence[str]) -> list[SlideRecord]:
    """Tile and predict the named slides, or those of `predict.splits`, and return their records."""
    from wsi_ips.pipeline.predict_stage import predict_stage, to_predict
    from wsi_ips.pipeline.slide_predictions import checkpoint_folder

    records = to_predict(run, slides)
    names = [record.slide_id for record in records]
    read_card(checkpoint_folder(run))  # fails before anything is computed
    tile_stage(run, only=set(names))
    if run.recipe.features.imported is not None:  # without them, the model computes features from pixels
        _features(run, names)
    predict_stage(run, slides)
    return records


def _stored_summary(run: Run) -> dict[str, Any] | None:
    """Return the stored summary; None where it or the page is missing or older than the states."""
    try:
        stored: dict[str, Any] = json.loads(run.folder.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    counted = all(stored.get(f"slides_{s}") == run.states.count(s) for s in STATES)
    return stored if counted and run.folder.report.exists() else None
