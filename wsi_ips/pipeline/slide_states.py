"""States of the slides of a run: kept in memory, and written to ``run.sqlite`` at every change.

``slides.csv`` is an export for people; it is written when a stage ends, and once a minute in between.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from wsi_ips.cluster.jobs import JobOutcome
from wsi_ips.database import read_rows, transaction
from wsi_ips.errors import Failure, fenced
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.provenance import atomic_path, atomic_write_text
from wsi_ips.tables import table_text
from wsi_ips.tiles.recall import NO_TILE, NotAnalysed

Stage = Literal["tile", "features", "train", "predict", "heatmap", "handoff"]
State = Literal["pending", "ok", "empty", "unsuited", "failed"]
STATES: tuple[State, ...] = ("ok", "empty", "unsuited", "failed", "pending")
WITHOUT_TILES: tuple[State, ...] = ("empty", "unsuited")
T = TypeVar("T")

EXPORT_EVERY_S = 60.0
MUCH_FLAGGED, MOST = 0.1, 3  # share of a slide's tissue lost to flags from which it is named; number of slides named
DONE: dict[str, Any] = {"state": "ok", "reason": "", "traceback": ""}
SQL_TYPES = dict.fromkeys(("tiles", "attempts"), "INTEGER") | dict.fromkeys(
    ("mpp", "tissue_mm2", "share_not_analysed", "seconds", "cpu_seconds", "rss_mb"), "REAL"
)  # columns that are not text


@dataclass(frozen=True)
class SlideState:
    """One row of the table."""

    slide_id: str
    # ``pending`` (no stage has worked on it), ``ok``, ``empty`` (no tissue: a result, not an error), ``unsuited`` (no
    # stained section, so it is neither learned from nor predicted unless its row of the manifest asks) or ``failed``
    state: State = "pending"
    stage: str = ""  # last stage that worked on the slide
    reason: str = ""  # why it is empty, unsuited or failed, and what to do
    reader: str = ""  # the reader that opened it
    mpp: float | None = None  # µm per level-0 pixel along x
    tiles: int | None = None  # number of tiles in its index
    tissue_mm2: float | None = None  # tissue area
    share_not_analysed: float | None = None  # share of the tissue area that no tile covers, 0-1
    not_analysed_mm2: str = ""  # that area by reason, as :attr:`wsi_ips.tiles.recall.NotAnalysed.stored`
    tissue_method: str = ""  # what found the tissue: a rung of :mod:`wsi_ips.tissue.methods`, or ``drawn``
    remarks: str = ""  # what is odd about the tissue or the tiles and should be checked
    seconds: float | None = None  # time spent in ``stage``
    attempts: int = 0  # attempts at ``stage`` since it last succeeded
    cpu_seconds: float | None = None  # CPU time, where the slide had its own process
    rss_mb: float | None = None  # largest resident memory of that process so far, MB (10⁶ bytes)
    traceback: str = ""  # file with the traceback of the last failure, relative to the run folder

    @property
    def is_tiled(self) -> bool:
        """Whether the slide was tiled, with or without tiles; a later stage may have failed."""
        return self.state in ("ok", *WITHOUT_TILES) or (self.state == "failed" and self.stage != "tile")

    @property
    def not_analysed(self) -> NotAnalysed | None:
        """Tissue that no tile covers; None where there is no tissue, or where it was not measured."""
        if self.share_not_analysed is None:
            return None
        return NotAnalysed.of_stored(self.share_not_analysed, self.not_analysed_mm2)


COLUMNS = tuple(field.name for field in fields(SlideState))
values_of = attrgetter(*COLUMNS)
SCHEMA = "CREATE TABLE IF NOT EXISTS slides (slide_id TEXT PRIMARY KEY, {})".format(
    ", ".join(f"{name} {SQL_TYPES.get(name, 'TEXT')}" for name in COLUMNS[1:])
)
REPLACE = f"REPLACE INTO slides ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608
STORED = "SELECT name FROM pragma_table_info('slides')"  # columns that a database has


class StateTable:
    """States of a cohort, in the order of the manifest; only one process writes them, from any of its threads."""

    def __init__(self, folder: RunFolder, rows: Iterable[SlideState] = ()) -> None:
        self.folder = folder
        self._rows = {row.slide_id: row for row in rows}
        self._lock = threading.Lock()
        self._exported = time.monotonic()

    @classmethod
    def read(cls, folder: RunFolder, slide_ids: Iterable[str]) -> Self:
        """Read the states of the slides of a manifest; unknown slides are pending.

        With shared tiles, slides that the other run has tiled count as tiled in this one too.
        """
        shared = read_states(RunFolder(folder.shared).database) if folder.shared else []
        as_tiled = DONE | {"stage": "tile", "seconds": None, "attempts": 1}  # of slides that a later stage worked on
        known = {r.slide_id: r if r.stage == "tile" else replace(r, **as_tiled) for r in shared if r.is_tiled}
        known |= {row.slide_id: row for row in read_states(folder.database) if row.state != "pending"}
        return cls(folder, (known.get(name, SlideState(name)) for name in slide_ids))

    def __getitem__(self, slide_id: str) -> SlideState:
        return self._rows[slide_id]

    def __iter__(self) -> Iterator[SlideState]:
        return iter(list(self._rows.values()))

    def reload(self) -> None:
        """Read the states again, after another process has changed them."""
        self._rows = type(self).read(self.folder, self._rows)._rows

    def is_done(self, slide_id: str) -> bool:
        """Return whether the slide was tiled, with or without tiles; a later stage may have failed."""
        return self._rows[slide_id].is_tiled

    def with_tiles(self, records: Iterable[SlideRecord]) -> list[SlideRecord]:
        """Return the slides with tiles: state ``ok``, or failed in a later stage, which may try again."""
        return [r for r in records if self.is_done(r.slide_id) and self._rows[r.slide_id].state not in WITHOUT_TILES]

    def count(self, state: State) -> int:
        """Return the number of slides in a state."""
        return sum(row.state == state for row in self)

    def update(self, slide_id: str, **changes: object) -> None:
        """Change columns of a slide's row, in memory and on disk."""
        with self._lock:
            row = replace(self._rows.get(slide_id, SlideState(slide_id)), **changes)  # type: ignore[arg-type]
            self._rows[slide_id] = row
            self._write([row])
            if time.monotonic() - self._exported > EXPORT_EVERY_S:
                self._export()

    def save(self) -> None:
        """Write every row, and the exports: ``slides.csv``, and ``slides.parquet`` where pyarrow is installed."""
        with self._lock:
            self._write(self, whole=True)
            self._export()
            if find_spec("pyarrow"):
                self._export_parquet()

    def fence(self, slide_id: str, stage: Stage, work: Callable[[], T]) -> T | None:
        """Return the result of one slide's work in a stage after ``tile``, or None: its exception becomes the state."""
        began = time.monotonic()
        attempts = self._failures(slide_id, stage) + 1
        result = fenced(work)
        seconds = round(time.monotonic() - began, 3)
        if isinstance(result, Failure):
            self.fail(slide_id, stage, result, seconds=seconds, attempts=attempts)
            return None
        self.update(slide_id, stage=stage, seconds=seconds, attempts=attempts, **DONE)
        return result

    def record(self, outcome: JobOutcome, stage: Stage, done: Mapping[str, object] = DONE) -> None:
        """Record the outcome of a slide's job in a stage: its failure, or the columns ``done``."""
        name, usage, failure = outcome.job.name, outcome.result.usage, outcome.failure
        columns: dict[str, object] = {
            "seconds": round(usage.wall_s, 3),
            "attempts": self._failures(name, stage) + outcome.attempts,
            "cpu_seconds": round(usage.cpu_s, 3),
            "rss_mb": round(usage.peak_rss_mb, 1),
        }
        if failure is None:
            self.update(name, stage=stage, **columns | {"traceback": ""} | dict(done))
        else:
            self.fail(name, stage, failure, **columns)

    def fail(self, slide_id: str, stage: Stage, failure: Failure | Exception, **columns: object) -> None:
        """Mark a slide as failed and write the traceback to its log file."""
        failed = Failure.of(failure) if isinstance(failure, Exception) else failure
        log = self.folder.traceback(slide_id)
        atomic_write_text(log, failed.traceback or failed.reason + "\n")
        traceback = log.relative_to(self.folder.root).as_posix()
        known = {"seconds": 0.0, "attempts": 1} | columns
        self.update(slide_id, state="failed", stage=stage, reason=failed.reason, traceback=traceback, **known)

    def _failures(self, slide_id: str, stage: Stage) -> int:
        """Return the number of failed attempts at a stage since it last succeeded."""
        row = self._rows.get(slide_id, SlideState(slide_id))
        return row.attempts if row.state == "failed" and row.stage == stage else 0

    def _write(self, rows: Iterable[SlideState], *, whole: bool = False) -> None:
        self.folder.root.mkdir(parents=True, exist_ok=True)
        with transaction(self.folder.database, creates=SCHEMA) as database:
            stored = {name for (name,) in database.execute(STORED)}
            for name in [name for name in COLUMNS if name not in stored]:  # of an earlier version
                database.execute(f"ALTER TABLE slides ADD COLUMN {name} {SQL_TYPES.get(name, 'TEXT')}")
            if whole:
                database.execute("DELETE FROM slides")  # drops slides that left the manifest
            database.executemany(REPLACE, map(values_of, rows))

    def _export(self) -> None:
        atomic_write_text(self.folder.states, table_text(COLUMNS, map(values_of, self._rows.values())))
        self._exported = time.monotonic()

    def _export_parquet(self) -> None:
        import pandas as pd

        table = pd.DataFrame([values_of(row) for row in self._rows.values()], columns=list(COLUMNS), dtype=object)
        types = {"INTEGER": "Int64", "REAL": "Float64"}
        with atomic_path(self.folder.states_typed) as temporary:
            table.astype({name: types[kind] for name, kind in SQL_TYPES.items()}).to_parquet(temporary, index=False)


def read_states(path: Path) -> list[SlideState]:
    """Read all rows of a run's database, also while another process writes; none where there is no database."""
    stored = {name for (name,) in read_rows(path, "slides", STORED)}  # an earlier version had fewer columns
    names = [name for name in COLUMNS if name in stored]
    if not names:
        return []
    rows = read_rows(path, "slides", f"SELECT {', '.join(names)} FROM slides")  # noqa: S608
    return [SlideState(**dict(zip(names, row, strict=True))) for row in rows]  # type: ignore[arg-type]


def not_analysed_of(states: Iterable[SlideState]) -> dict[str, Any]:
    """Return the tissue of all slides that no tile covers, for ``summary.json`` and people.

    ``share_not_analysed`` of the whole tissue area, ``not_analysed``: areas by reason, ``most_not_analysed``: slides
    of which flags took the largest share. None and empty where nothing was measured.
    """
    known = [(row, found, row.tissue_mm2 or 0.0) for row in states if (found := row.not_analysed) is not None]
    total = math.fsum(tissue for *_, tissue in known)
    if not total:
        return {"share_not_analysed": None, "not_analysed": "", "most_not_analysed": ""}
    mm2: Counter[str] = Counter()
    for _, found, _ in known:
        mm2.update(found.mm2)
    share = math.fsum(found.share * tissue for _, found, tissue in known) / total
    worst = sorted((pair for pair in known if pair[1].share_flagged >= MUCH_FLAGGED), key=lambda p: -p[1].share_flagged)
    return {
        "share_not_analysed": round(share, 4),
        "not_analysed": NotAnalysed(share, dict(sorted(mm2.items(), key=lambda p: (p[0] == NO_TILE, -p[1])))).areas,
        "most_not_analysed": ", ".join(f"{row.slide_id} {found.share_flagged:.0%}" for row, found, _ in worst[:MOST]),
    }
