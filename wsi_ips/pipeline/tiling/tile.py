"""Stage ``tile``: tissue mask and tile index of every slide, each in a process of its own."""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from wsi_ips.cluster import Job, JobOutcome
from wsi_ips.manifest import SlideRecord
from wsi_ips.pipeline.checks.survey import survey
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.spread import failure_of_job, spread
from wsi_ips.pipeline.tiling.job import TILE_JOB, SlideTask, Tiled
from wsi_ips.pipeline.tiling.sheet import sheet_stage
from wsi_ips.pipeline.tiling.throughput import Throughput


def tile_stage(run: Run, only: Container[str] | None = None) -> int:
    """Tile all slides (or only some, by slide_id) whose index is not up to date; the number worked on."""
    sizes = due_slides(run, [r for r in run.records if only is None or r.slide_id in only])
    if not sizes:
        return 0
    records = {r.slide_id: r for r in run.records}
    jobs = [Job(name, TILE_JOB, SlideTask(run.recipe, records[name])) for name in sizes]
    with (
        run.progress.stage("tissue and tiles", len(jobs), "slides") as advance,
        spread(run.recipe.compute, jobs) as work,
    ):
        meter = Throughput(sizes, workers=work.workers, path=run.folder.progress, few_for_memory=work.few_for_memory)
        try:
            meter.write()
            for outcome in work.outcomes:
                if outcome is not None:
                    _book(run, outcome, meter)
                    advance(1)
                line = meter.tick()
                if line:
                    run.progress.note(line)
        finally:
            meter.close()
            run.states.save()
    run.progress.note(meter.line())
    sheet_stage(run)
    return len(jobs)


class Looked(NamedTuple):
    """What a look at a slide's file says; of one that does not answer, that it is due and small."""

    size_bytes: int = 0
    is_tiled: bool = False


def due_slides(run: Run, records: Sequence[SlideRecord]) -> dict[str, int]:
    """Bytes of each slide whose index is not up to date, by slide_id, the largest first."""
    looks = survey(records, partial(_look, run), otherwise=Looked())
    due = [(record, look) for record, look in zip(records, looks, strict=True) if not look.is_tiled]
    return {record.slide_id: look.size_bytes for record, look in sorted(due, key=lambda pair: -pair[1].size_bytes)}


def _look(run: Run, record: SlideRecord) -> Looked:
    try:
        size = record.path.stat().st_size if isinstance(record.path, Path) else 0
    except OSError:
        size = 0
    return Looked(size, run.is_tiled(record))


def _book(run: Run, outcome: JobOutcome, meter: Throughput) -> None:
    """Write down what came of a slide."""
    name, result, usage = outcome.job.name, outcome.result, outcome.result.usage
    before = run.states[name]
    earlier = before.attempts if before.state == "failed" and before.stage == "tile" else 0
    took = {"cpu_seconds": round(usage.cpu_s, 3), "rss_mb": round(usage.peak_rss_mb, 1)}
    if isinstance(result.value, Tiled):
        tiled = result.value
        if tiled.worked:
            run.states.update(
                name,
                stage="tile",
                seconds=round(usage.wall_s, 3),
                attempts=earlier + outcome.attempts,
                traceback="",
                **took,
                **tiled.row,
            )
        else:
            run.states.update(name, stage="tile", attempts=max(1, before.attempts), traceback="", **tiled.row)
        meter.ended(name, usage, megapixels=tiled.megapixels, failed=False)
        return
    run.states.fail(name, "tile", failure_of_job(outcome), seconds=usage.wall_s, attempts=earlier + outcome.attempts)
    run.states.update(name, **took)
    meter.ended(name, usage, megapixels=0.0, failed=True)
