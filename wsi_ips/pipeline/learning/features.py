"""Stage ``features``: what the encoder as it comes makes of every tile, or what another tool's encoder made of them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

import torch

from wsi_ips.cluster import Job, JobOutcome
from wsi_ips.config import ComputeSection
from wsi_ips.errors import ManifestError
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.encoder import IMPORTED
from wsi_ips.pipeline.learning.encoding import feature_source
from wsi_ips.pipeline.learning.feature_files import foreign_of
from wsi_ips.pipeline.learning.feature_source import FeatureSource
from wsi_ips.pipeline.learning.features_job import FEATURES_JOB, FeaturesTask
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.spread import failure_of_job, spread, timeout_s
from wsi_ips.scanning import choose_device
from wsi_ips.tiles import write_features
from wsi_ips.tiles.interop import rows_of_tiles


def features_stage(run: Run, names: Sequence[str] = ()) -> int:
    """Store the features of all slides with tiles (or of some) that are not up to date; the number worked on.

    Raises
    ------
    CheckpointError, RecipeError
        The encoder cannot be built.
    FeaturesError
        The folder of another tool's features cannot be used.
    ManifestError
        A name is no slide_id of the manifest.
    """
    unknown = sorted(set(names) - {record.slide_id for record in run.records})
    if unknown:
        raise ManifestError(f"manifest {run.recipe.manifest}: no slide_id {', '.join(unknown)}; check the spelling")
    source = feature_source(run)
    chosen = [record for record in run.with_tiles() if not names or record.slide_id in names]
    due = [record for record in chosen if not source.has(record)]
    if due and source.files is not None:
        _take_over(run, source, due)
    elif due:
        _compute(run, source, due)
    if due:
        run.states.save()
    return len(due)


def _take_over(run: Run, source: FeatureSource, due: Sequence[SlideRecord]) -> None:
    """Bring features of another tool into the order of the tiles; a slide whose file contradicts fails alone."""
    with run.progress.stage("features of another tool", len(due), "slides") as advance:
        for record in due:

            def work(record: SlideRecord = record) -> None:
                # What was taken earlier came from another file: scores must not rest on it where this one is refused.
                shutil.rmtree(source.folder / record.slide_id, ignore_errors=True)
                index = run.index(record)
                foreign = foreign_of(source.file(record), record)
                rows = rows_of_tiles(foreign, index)
                write_features(
                    source.folder,
                    record.slide_id,
                    [foreign.values[rows]],
                    encoder=f"{IMPORTED}{foreign.encoder}",
                    fingerprint=source.wanted(record),
                    tiles=len(index),
                )

            run.states.fence(record.slide_id, "features", work)
            advance(1)


def _compute(run: Run, source: FeatureSource, due: Sequence[SlideRecord]) -> None:
    """Have them computed, the largest slides first, each in a process that keeps its encoder."""
    recipe, began = run.recipe, time.monotonic()
    if not (recipe.model.pretrained or recipe.model.weights or recipe.model.start):
        run.progress.note(
            f"encoder {recipe.model.encoder} has no weights: these are features of an untrained network; set "
            "`model.pretrained`, `model.weights` or `model.start`"
        )
    ordered = sorted(due, key=lambda record: -(run.states[record.slide_id].tiles or 0))
    jobs = [
        Job(
            record.slide_id,
            FEATURES_JOB,
            FeaturesTask(recipe, record, source.key, source.encoder),
            timeout_s=timeout_s(recipe.compute, run.states[record.slide_id].tiles or 0),
        )
        for record in ordered
    ]
    tiles = 0
    with (
        run.progress.stage("features", len(jobs), "slides") as advance,
        spread(_one_per_gpu(recipe.compute), jobs) as work,
    ):
        for outcome in work.outcomes:
            if outcome is not None:
                tiles += _book(run, outcome)
                advance(1)
    seconds = time.monotonic() - began
    run.progress.note(f"features of {tiles} tiles in {seconds:.0f} s, {tiles / max(seconds, 1e-3):.0f} a second")


def _one_per_gpu(compute: ComputeSection) -> ComputeSection:
    """One process for each GPU of this machine where there are some: several would each need its memory."""
    device = choose_device(compute.device)
    if compute.scheduler is not None or compute.workers is not None or device.type != "cuda":
        return compute
    return compute.model_copy(update={"workers": torch.cuda.device_count() if device.index is None else 1})


def _book(run: Run, outcome: JobOutcome) -> int:
    """Write down what came of a slide; tiles embedded."""
    name, result, usage = outcome.job.name, outcome.result, outcome.result.usage
    took = {"cpu_seconds": round(usage.cpu_s, 3), "rss_mb": round(usage.peak_rss_mb, 1)}
    if isinstance(result.value, int):
        done = {"state": "ok", "reason": "", "traceback": ""}
        run.states.update(
            name, stage="features", seconds=round(usage.wall_s, 3), attempts=outcome.attempts, **took, **done
        )
        return result.value
    run.states.fail(name, "features", failure_of_job(outcome), seconds=usage.wall_s, attempts=outcome.attempts)
    run.states.update(name, **took)
    return 0
