"""The table of states: every slide of the cohort is in exactly one state, with a reason."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd

from wsi_ips.errors import WsiIpsError
from wsi_ips.provenance import atomic_path, atomic_write_text

Stage = Literal["tile", "train", "predict", "heatmap"]
State = Literal["pending", "ok", "empty", "failed"]
STATES: tuple[State, ...] = ("ok", "empty", "failed", "pending")
T = TypeVar("T")

SAVE_EVERY_S = 2.0


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


class StateTable:
    """States of a cohort, kept in one CSV that is replaced whole.

    Safe for the threads of one process.
    """

    def __init__(self, path: Path, logs: Callable[[str], Path], slide_ids: Iterable[str]) -> None:
        self._path, self._logs = path, logs
        known = {state.slide_id: state for state in read_states(path)} if path.exists() else {}
        self._rows = {name: known.get(name, SlideState(name)) for name in slide_ids}
        self._lock = threading.Lock()
        self._saved = 0.0

    def __getitem__(self, slide_id: str) -> SlideState:
        return self._rows[slide_id]

    def __iter__(self) -> Iterator[SlideState]:
        return iter(list(self._rows.values()))

    def count(self, state: State) -> int:
        """Number of slides in a state."""
        return sum(row.state == state for row in self)

    def update(self, slide_id: str, **changes: object) -> None:
        """Change a slide's row; the file follows within two seconds, or at :meth:`save`."""
        with self._lock:
            row = self._rows.get(slide_id, SlideState(slide_id))
            self._rows[slide_id] = replace(row, **changes)  # type: ignore[arg-type]
            if time.monotonic() - self._saved > SAVE_EVERY_S:
                self._write()

    def save(self) -> None:
        """Write the table now."""
        with self._lock:
            self._write()

    def fence(self, slide_id: str, stage: Stage, work: Callable[[], T]) -> T | None:
        """Run one slide's work of one stage; whatever goes wrong ends as that slide's state.

        This is the only place where any exception is caught: one bad slide never stops a cohort. Stage
        ``tile`` decides itself between ``ok`` and ``empty``; success in a later stage is ``ok``.

        Returns
        -------
        object or None
            What ``work`` returned, None where it failed.
        """
        began = time.monotonic()
        row = self._rows.get(slide_id, SlideState(slide_id))
        attempts = row.attempts + 1 if row.stage == stage and row.state == "failed" else 1
        try:
            result = work()
        except Exception as error:  # noqa: BLE001
            self.fail(slide_id, stage, error, seconds=time.monotonic() - began, attempts=attempts)
            return None
        done: dict[str, object] = {} if stage == "tile" else {"state": "ok", "reason": ""}
        seconds = round(time.monotonic() - began, 3)
        self.update(slide_id, stage=stage, seconds=seconds, attempts=attempts, **done)
        return result

    def fail(self, slide_id: str, stage: Stage, error: Exception, *, seconds: float = 0.0, attempts: int = 1) -> None:
        """Mark a slide as failed and keep the traceback beside."""
        text = str(error) if isinstance(error, WsiIpsError) else f"{type(error).__name__}: {error}"
        log = self._logs(slide_id)
        log.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(log, "".join(traceback.format_exception(error)))
        self.update(
            slide_id,
            state="failed",
            stage=stage,
            reason=" ".join(text.split()),
            seconds=round(seconds, 3),
            attempts=attempts,
        )

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame([asdict(row) for row in self._rows.values()], columns=_columns(), dtype=object)
        with atomic_path(self._path) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
        self._saved = time.monotonic()


def read_states(path: Path) -> list[SlideState]:
    """Read a table of states."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows = table[[name for name in _columns() if name in table]].to_dict("records")
    return [SlideState(**{str(name): _typed(str(name), text) for name, text in row.items()}) for row in rows]


def _typed(name: str, text: str) -> Any:
    """A cell of the table as its field's type; an empty cell of a number is None."""
    if name in ("tiles", "attempts"):
        return int(text) if text else None
    if name in ("mpp", "tissue_mm2", "seconds"):
        return float(text) if text else None
    return text


def _columns() -> list[str]:
    return [field.name for field in fields(SlideState)]
