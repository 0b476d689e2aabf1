"""Stage ``tile``: tissue mask and tile index of every slide, each in its own process."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from wsi_ips.cluster.jobs import spread
from wsi_ips.cluster.process import Job
from wsi_ips.config import ComputeSection
from wsi_ips.errors import ManifestError, StorageError, TileIndexError
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.progress import Progress
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.pipeline.slide_states import SlideState, StateTable
from wsi_ips.pipeline.survey import survey
from wsi_ips.pipeline.tile_slide import TILE_JOB, SlideTask
from wsi_ips.tiles.store import stored_row

NOTE_EVERY_S = 60.0
UNKNOWN: int | None = 0  # bytes of a file that does not answer; it is due


def tile_stage(
    slides: RunSlides,
    states: StateTable,
    compute: ComputeSection,
    progress: Progress,
    only: Container[str] | None = None,
) -> int:
    """Tile all slides, or those in ``only``, whose index is not up to date; return the number worked on."""
    chosen = [r for r in slides.records if only is None or r.slide_id in only]
    found = zip(chosen, survey(chosen, partial(_bytes_due, slides, states), otherwise=UNKNOWN), strict=True)
    due = sorted(((record, size) for record, size in found if size is not None), key=lambda pair: -pair[1])
    if not due:
        return 0
    sizes = {record.slide_id: size for record, size in due}
    jobs = [Job(record.slide_id, TILE_JOB, SlideTask(slides.alone(record), states.folder.root)) for record, _ in due]
    pace = Pace(sizes)
    try:
        with (
            progress.stage("tissue and tiles", len(jobs), "slides") as advance,
            spread(compute, jobs) as outcomes,
        ):
            for outcome in outcomes:
                if outcome is not None:
                    worked, row = outcome.result.value or (True, {})
                    if worked:
                        states.record(outcome, "tile", row)
                    else:  # time and memory stay those of the process that tiled it
                        row |= {"attempts": max(1, states[outcome.job.name].attempts), "traceback": ""}
                        states.update(outcome.job.name, stage="tile", **row)
                    pace.count(outcome.job.name, failed=outcome.result.failure is not None)
                    advance(1)
                if pace.is_note_due():
                    progress.note(pace.line())
    except StorageError:
        raise  # the states are stored at every change; their exports would fail too
    except BaseException:
        states.save()
        raise
    states.save()
    progress.note(pace.line())
    return len(jobs)


def _bytes_due(slides: RunSlides, states: StateTable, record: SlideRecord) -> int | None:
    """Return the size of a slide's file in bytes, 0 where it is unknown; None where its tiles are up to date."""
    try:
        size = record.path.stat().st_size if isinstance(record.path, Path) else 0
    except OSError:
        size = 0
    return None if states.is_done(record.slide_id) and slides.is_tiled(record) else size


class Pace:
    """Counts finished slides and estimates the time left."""

    def __init__(self, sizes: Mapping[str, int]) -> None:  # bytes of each slide by slide_id, 0 where unknown
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
        # The time left follows the shares of slides and of bytes, half each: some work is per slide, some per pixel.
        whole = sum(self._sizes.values())
        shares = [self._slides / len(self._sizes)] + ([self._bytes / whole] if whole else [])
        done = sum(shares) / len(shares)
        left = f", {_duration(seconds * (1 - done) / done)} left" if 0 < done < 1 else ""
        return (
            f"{self._slides} of {len(self._sizes)} slides{failed} in {_duration(seconds)}, "
            f"{self._slides / seconds:.3g} slides/s{left}"
        )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Retried(NamedTuple):
    """Slides to tile again, and slides that failed later and got back the state of their tiles."""

    tiled: tuple[str, ...]
    restored: tuple[str, ...]


def restore_failed(slides: RunSlides, states: StateTable, reason: str = "", names: Sequence[str] = ()) -> Retried:
    """Make slides that failed after tiling ready for the stage that failed; the others are to be tiled again.

    ``names`` and ``reason`` (part of the text, in any case) limit the slides.
    """
    unknown = sorted(set(names) - {record.slide_id for record in slides.records})
    if unknown:
        raise ManifestError(
            f"manifest {slides.manifest}: no slide_id {', '.join(unknown)}; `wsi-ips status` lists them"
        )
    failed = [row for row in states if row.state == "failed" and reason.lower() in row.reason.lower()]
    chosen = [row for row in failed if not names or row.slide_id in names]
    restored = tuple(row.slide_id for row in chosen if row.stage != "tile" and _restore(slides, states, row))
    tiled = tuple(row.slide_id for row in chosen if row.slide_id not in restored)
    states.save()
    return Retried(tiled, restored)


def _restore(slides: RunSlides, states: StateTable, row: SlideState) -> bool:
    """Set a slide's state from its tiles, and return whether it has any."""
    try:
        stored = stored_row(slides.store, row.slide_id)
    except TileIndexError:
        return False
    if stored:
        states.update(row.slide_id, stage="tile", attempts=1, traceback="", **stored)
    return bool(stored)
