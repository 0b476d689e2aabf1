"""Stage ``tile``: tissue mask and tile index of every slide, each in its own process."""

from __future__ import annotations

import time
from collections.abc import Collection, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from wsi_ips.cluster import Job, JobOutcome
from wsi_ips.errors import ManifestError, TileIndexError
from wsi_ips.fence import survey
from wsi_ips.manifest import SlideRecord
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.slide_states import SlideState, StateTable
from wsi_ips.pipeline.spread import failure_of_job, spread
from wsi_ips.pipeline.tile_job import TILE_JOB, SlideTask, Tiled
from wsi_ips.pipeline.tissue_sheet import sheet_stage
from wsi_ips.tiles import stored_row

NOTE_EVERY_S = 60.0


def tile_stage(run: Run, only: Container[str] | None = None) -> int:
    """Tile all slides, or those in ``only``, whose index is not up to date, and return how many were worked on."""
    sizes = due_slides(run, [r for r in run.records if only is None or r.slide_id in only])
    if not sizes:
        return 0
    records = {r.slide_id: r for r in run.records}
    jobs = [Job(name, TILE_JOB, SlideTask(run.recipe, records[name])) for name in sizes]
    pace = Pace(sizes)
    try:
        with (
            run.progress.stage("tissue and tiles", len(jobs), "slides") as advance,
            spread(run.recipe.compute, jobs) as work,
        ):
            for outcome in work.outcomes:
                if outcome is not None:
                    _record(run.states, outcome)
                    pace.count(outcome.job.name, failed=outcome.result.failure is not None)
                    advance(1)
                if pace.is_note_due():
                    run.progress.note(pace.line())
    finally:
        run.states.save()
    run.progress.note(pace.line())
    sheet_stage(run)
    return len(jobs)


class FileFacts(NamedTuple):
    """Size of a slide's file and whether its tiles are up to date; a file that does not answer is small and due."""

    size_bytes: int = 0
    is_tiled: bool = False


def due_slides(run: Run, records: Collection[SlideRecord]) -> dict[str, int]:
    """Return the bytes of each slide whose index is not up to date, by slide_id, the largest first."""
    facts = survey(list(records), partial(_file_facts, run), otherwise=FileFacts())
    due = [(record, fact) for record, fact in zip(records, facts, strict=True) if not fact.is_tiled]
    return {record.slide_id: fact.size_bytes for record, fact in sorted(due, key=lambda pair: -pair[1].size_bytes)}


def _file_facts(run: Run, record: SlideRecord) -> FileFacts:
    try:
        size = record.path.stat().st_size if isinstance(record.path, Path) else 0
    except OSError:
        size = 0
    return FileFacts(size, run.is_tiled(record))


def _record(states: StateTable, outcome: JobOutcome) -> None:
    """Record the outcome of a slide in the states."""
    name, result, usage = outcome.job.name, outcome.result, outcome.result.usage
    attempts = states.failures(name, "tile") + outcome.attempts
    took = {"cpu_seconds": round(usage.cpu_s, 3), "rss_mb": round(usage.peak_rss_mb, 1)}
    if not isinstance(result.value, Tiled):
        states.fail(name, "tile", failure_of_job(outcome), attempts=attempts, seconds=usage.wall_s, **took)
    elif result.value.worked:
        seconds = round(usage.wall_s, 3)
        states.update(name, stage="tile", seconds=seconds, attempts=attempts, traceback="", **took, **result.value.row)
    else:
        attempts = max(1, states[name].attempts)
        states.update(name, stage="tile", attempts=attempts, traceback="", **result.value.row)


class Pace:
    """Counts finished slides and estimates the time left.

    Parameters
    ----------
    sizes
        Bytes of each slide to work on, by slide_id; 0 where unknown.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._began = self._noted = time.monotonic()
        self._slides = self._failed = self._bytes = 0

    def count(self, slide_id: str, *, failed: bool) -> None:
        """Count a finished slide."""
        self._slides += 1
        self._failed += failed
        self._bytes += self._sizes[slide_id]

    def is_note_due(self) -> bool:
        """Return True once a minute."""
        if time.monotonic() - self._noted < NOTE_EVERY_S:
            return False
        self._noted = time.monotonic()
        return True

    def line(self) -> str:
        """Return slides per second and the time left as one line."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        failed = f" ({self._failed} failed)" if self._failed else ""
        left = self._seconds_left(seconds)
        return (
            f"{self._slides} of {len(self._sizes)} slides{failed} in {_duration(seconds)}, "
            f"{self._slides / seconds:.3g} slides/s" + (f", {_duration(left)} left" if left else "")
        )

    def _seconds_left(self, seconds: float) -> float | None:
        """Estimate from the shares of slides and of bytes, half each: some work is per slide, some per pixel."""
        whole = sum(self._sizes.values())
        shares = [self._slides / len(self._sizes)] + ([self._bytes / whole] if whole else [])
        done = sum(shares) / len(shares)
        return round(seconds * (1 - done) / done, 1) if done else None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Retried(NamedTuple):
    """Slides that were tiled again, and slides that failed later and got back the state of their tiles."""

    tiled: tuple[str, ...]
    restored: tuple[str, ...]


def retry(run: Run, reason: str = "", names: Sequence[str] = ()) -> Retried:
    """Tile failed slides again; those that failed after tiling become ready for the stage that failed.

    ``names`` and ``reason`` (part of the text, in any case) limit the slides.
    """
    unknown = sorted(set(names) - {record.slide_id for record in run.records})
    if unknown:
        raise ManifestError(
            f"manifest {run.recipe.manifest}: no slide_id {', '.join(unknown)}; `wsi-ips status` lists them"
        )
    failed = [row for row in run.states if row.state == "failed" and reason.lower() in row.reason.lower()]
    chosen = [row for row in failed if not names or row.slide_id in names]
    restored = tuple(row.slide_id for row in chosen if row.stage != "tile" and _restore(run, row))
    tiled = tuple(row.slide_id for row in chosen if row.slide_id not in restored)
    run.states.save()
    if tiled:
        tile_stage(run, only=tiled)
    return Retried(tiled, restored)


def _restore(run: Run, row: SlideState) -> bool:
    """Give a slide the state of its tiles, and return whether it has any."""
    try:
        stored = stored_row(run.folder.tiles, row.slide_id)
    except TileIndexError:
        return False
    if stored:
        run.states.update(row.slide_id, stage="tile", attempts=1, traceback="", **stored)
    return bool(stored)
