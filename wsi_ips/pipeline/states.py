"""The table of states: every slide of the cohort is in exactly one state, with a reason.

``slides.csv`` and ``slides.parquet`` hold the whole table; they are replaced when a stage ends, and at times in
between. What changed since then stands in ``slides.jsonl``, a line per change, which is only ever appended to: a
cohort of 100 000 slides is not written again for each of them, and nothing that was told is lost with the process.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from wsi_ips.fence import Failure, failure_of, fenced
from wsi_ips.provenance import atomic_path, atomic_write_text

Stage = Literal["tile", "features", "train", "predict", "heatmap", "handoff"]
State = Literal["pending", "ok", "empty", "failed"]
STATES: tuple[State, ...] = ("ok", "empty", "failed", "pending")
T = TypeVar("T")

FLUSH_EVERY_S = 1.0
"""Changes of this time are lost at most, where the whole machine goes down; the index of tiles still has them."""
COMPACT_EVERY_S = 60.0
INTEGERS, NUMBERS = ("tiles", "attempts"), ("mpp", "tissue_mm2", "seconds", "cpu_seconds", "rss_mb")


@dataclass(frozen=True)
class SlideState:
    """One row of ``slides.csv``.

    Attributes
    ----------
    slide_id
        Identity of the slide.
    state
        ``pending`` (not worked on yet), ``ok``, ``empty`` (no tissue: a result, not an error) or ``failed``.
    stage
        Last stage that worked on the slide.
    reason
        Why it is empty or failed, with the way out.
    reader
        Which reader opened it.
    mpp
        µm per level-0 pixel along x.
    tiles
        Tiles in its index.
    tissue_mm2
        Tissue area.
    tissue_method
        What found the tissue: a rung of :mod:`wsi_ips.tissue.ladder`, or ``drawn``.
    remarks
        What is odd about the tissue or the tiles; a person should look.
    seconds
        Time spent in ``stage``.
    attempts
        Times ``stage`` was tried since it last succeeded.
    cpu_seconds
        CPU time of it, where the slide had a process of its own.
    rss_mb
        Largest resident memory of that process until then, MB (10⁶ bytes).
    traceback
        File with the traceback of the last failure, relative to the run folder.
    """

    slide_id: str
    state: State = "pending"
    stage: str = ""
    reason: str = ""
    reader: str = ""
    mpp: float | None = None
    tiles: int | None = None
    tissue_mm2: float | None = None
    tissue_method: str = ""
    remarks: str = ""
    seconds: float | None = None
    attempts: int = 0
    cpu_seconds: float | None = None
    rss_mb: float | None = None
    traceback: str = ""

    @property
    def is_tiled(self) -> bool:
        """Whether it was tiled, with tiles or without; it may have failed later."""
        return self.state in ("ok", "empty") or (self.state == "failed" and self.stage != "tile")


class StateTable:
    """States of a cohort. Safe for the threads of one process, which is the only one that writes.

    Parameters
    ----------
    path
        ``slides.csv``; the other files lie beside.
    logs
        File for the traceback of a slide.
    rows
        What is known.
    """

    def __init__(self, path: Path, logs: Callable[[str], Path], rows: Iterable[SlideState] = ()) -> None:
        self._path, self._logs = path, logs
        self._rows = {row.slide_id: row for row in rows}
        self._lock = threading.Lock()
        self._unwritten: list[SlideState] = []
        self._flushed = self._compacted = time.monotonic()

    @classmethod
    def read(
        cls, path: Path, logs: Callable[[str], Path], slide_ids: Iterable[str], *, tiled_in: Path | None = None
    ) -> Self:
        """What an earlier run left, for the slides of a manifest; those it does not know are pending.

        Slides that the run of ``tiled_in`` (its ``slides.csv``) has tiled count as tiled in this one too.
        """
        elsewhere = read_states(tiled_in) if tiled_in else []
        known = {row.slide_id: _as_tiled(row) for row in elsewhere if row.is_tiled}
        known |= {row.slide_id: row for row in read_states(path) if row.state != "pending"}
        return cls(path, logs, (known.get(name, SlideState(name)) for name in slide_ids))

    def __getitem__(self, slide_id: str) -> SlideState:
        return self._rows[slide_id]

    def __iter__(self) -> Iterator[SlideState]:
        return iter(list(self._rows.values()))

    def count(self, state: State) -> int:
        """Number of slides in a state."""
        return sum(row.state == state for row in self)

    def update(self, slide_id: str, **changes: object) -> None:
        """Change a slide's row; it is on disk within a second of the next change, or at :meth:`save`."""
        with self._lock:
            row = self._rows.get(slide_id, SlideState(slide_id))
            self._rows[slide_id] = replace(row, **changes)  # type: ignore[arg-type]
            self._unwritten.append(self._rows[slide_id])
            if time.monotonic() - self._flushed > FLUSH_EVERY_S:
                self._append()
            if time.monotonic() - self._compacted > COMPACT_EVERY_S:
                self._compact()

    def save(self) -> None:
        """Write the whole table now."""
        with self._lock:
            self._append()
            self._compact()

    def fence(self, slide_id: str, stage: Stage, work: Callable[[], T]) -> T | None:
        """Run one slide's work of a stage after ``tile``; whatever goes wrong ends as that slide's state.

        Returns
        -------
        object or None
            What ``work`` returned, None where it failed.
        """
        began = time.monotonic()
        row = self._rows.get(slide_id, SlideState(slide_id))
        attempts = row.attempts + 1 if row.stage == stage and row.state == "failed" else 1
        result = fenced(work)
        seconds = round(time.monotonic() - began, 3)
        if isinstance(result, Failure):
            self.fail(slide_id, stage, result, seconds=seconds, attempts=attempts)
            return None
        done = {"state": "ok", "reason": "", "traceback": ""}
        self.update(slide_id, stage=stage, seconds=seconds, attempts=attempts, **done)
        return result

    def fail(
        self, slide_id: str, stage: Stage, failure: Failure | Exception, *, seconds: float = 0.0, attempts: int = 1
    ) -> None:
        """Mark a slide as failed and keep the traceback beside."""
        told = failure_of(failure) if isinstance(failure, Exception) else failure
        log = self._logs(slide_id)
        atomic_write_text(log, told.traceback or told.reason + "\n")
        self.update(
            slide_id,
            state="failed",
            stage=stage,
            reason=told.reason,
            seconds=round(seconds, 3),
            attempts=attempts,
            traceback=log.relative_to(self._path.parent).as_posix(),
        )

    def _append(self) -> None:
        """Add what changed to the journal, down to the disk."""
        if self._unwritten:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self._unwritten)
            descriptor = os.open(journal_of(self._path), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            with os.fdopen(descriptor, "r+b") as file:
                torn = _ends_torn(file.fileno())
                os.write(file.fileno(), (b"\n" if torn else b"") + lines.encode("utf-8"))
                os.fsync(file.fileno())
            self._unwritten = []
        self._flushed = time.monotonic()

    def _compact(self) -> None:
        """Write the whole table, then drop the journal, whose lines it holds now."""
        import pandas as pd

        self._path.parent.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame([asdict(row) for row in self._rows.values()], columns=_columns(), dtype=object)
        with atomic_path(self._path) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
        typed = table.astype(dict.fromkeys(INTEGERS, "Int64") | dict.fromkeys(NUMBERS, "Float64"))
        with atomic_path(self._path.with_suffix(".parquet")) as temporary:
            typed.to_parquet(temporary, index=False)
        journal_of(self._path).unlink(missing_ok=True)
        self._compacted = time.monotonic()


def _as_tiled(row: SlideState) -> SlideState:
    """A row as it was after tiling, whatever came of the slide later."""
    if row.stage == "tile":
        return row
    return replace(row, state="ok", stage="tile", reason="", seconds=None, attempts=1, traceback="")


def journal_of(path: Path) -> Path:
    """The file of changes that belongs to a table of states."""
    return path.with_suffix(".jsonl")


def read_states(path: Path) -> list[SlideState]:
    """Read the table of states with all that changed since it was written; empty where there is none.

    Also while another process writes it: the journal is read first, for what it loses to the table stays there.
    """
    changes = _read_journal(journal_of(path))
    rows = {row.slide_id: row for row in _read_table(path)}
    rows.update((row.slide_id, row) for row in changes)
    return list(rows.values())


def _read_table(path: Path) -> list[SlideState]:
    if not path.exists():
        return []
    import pandas as pd

    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows = table[[name for name in _columns() if name in table]].to_dict("records")
    return [SlideState(**{str(name): _typed(str(name), text) for name, text in row.items()}) for row in rows]


def _read_journal(path: Path) -> list[SlideState]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue  # empty, or torn when the process that wrote it was killed: that slide's index still tells
        rows.append(SlideState(**{name: values[name] for name in _columns() if name in values}))
    return rows


def _ends_torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _typed(name: str, text: str) -> Any:
    """A cell of the table as its field's type; an empty cell of a number is None."""
    if name in INTEGERS:
        return int(float(text)) if text else None  # a spreadsheet may have written 7.0
    if name in NUMBERS:
        return float(text) if text else None
    return text


def _columns() -> list[str]:
    return [field.name for field in fields(SlideState)]
