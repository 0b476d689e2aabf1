"""What reviewers say of slides: an SQLite file in the run folder, exported as CSV.

Every change is a new row; the newest of a slide counts. So nothing a reviewer said is ever lost.
"""

from __future__ import annotations

import csv
import io
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from wsi_ips.errors import ViewerError

VERDICTS = ("", "agree", "disagree")
MOST_NOTE, MOST_REVIEWER = 4000, 80
"""Longest note and longest name, characters."""
TIMEOUT_S = 5.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS review (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    slide_id TEXT NOT NULL,
    verdict TEXT NOT NULL,
    note TEXT NOT NULL,
    reviewer TEXT NOT NULL,
    time TEXT NOT NULL,
    probability REAL,
    model_id TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS review_slide ON review (slide_id, number);
"""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters by which a spreadsheet takes a cell for a formula."""


@dataclass(frozen=True)
class Review:
    """One review.

    Attributes
    ----------
    slide_id
        Which slide.
    verdict
        ``agree`` or ``disagree`` with the model; empty where there is only a note.
    note
        Free text.
    reviewer
        Initials or name; may be empty.
    time
        When, UTC.
    probability, model_id
        What was reviewed: the slide's probability of the positive class then, and which model said so.

    Raises
    ------
    ValueError
        Another verdict, or a text is too long.
    """

    slide_id: str
    verdict: str
    note: str = ""
    reviewer: str = ""
    time: str = ""
    probability: float | None = None
    model_id: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError("a verdict is agree, disagree or empty")
        if len(self.note) > MOST_NOTE or len(self.reviewer) > MOST_REVIEWER:
            raise ValueError(f"note or name too long: at most {MOST_NOTE} and {MOST_REVIEWER} characters")


COLUMNS = tuple(field.name for field in fields(Review))


class ReviewStore:
    """Reviews of one run; safe to use from several threads and processes.

    Parameters
    ----------
    path
        The SQLite file; it is made by the first review, and never by reading.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, review: Review) -> Review:
        """Keep a review; with the time at which it was kept.

        Raises
        ------
        ViewerError
            The file cannot be written.
        """
        kept = replace(review, time=datetime.now(UTC).isoformat(timespec="seconds"))
        with self._connected(write=True) as database:
            database.executescript(SCHEMA)
            marks = ", ".join("?" for _ in COLUMNS)
            values = [getattr(kept, name) for name in COLUMNS]
            database.execute(f"INSERT INTO review ({', '.join(COLUMNS)}) VALUES ({marks})", values)  # noqa: S608
            database.commit()
        return kept

    def latest(self) -> dict[str, Review]:
        """Newest review of every slide that has one."""
        if not self._path.exists():
            return {}
        newest = "SELECT max(number) FROM review GROUP BY slide_id"
        with self._connected(write=False) as database:
            rows = database.execute(
                f"SELECT {', '.join(COLUMNS)} FROM review WHERE number IN ({newest}) ORDER BY number"  # noqa: S608
            ).fetchall()
        return {row[0]: Review(*row) for row in rows}

    def csv(self) -> str:
        """Newest review of every slide, as CSV; texts that a spreadsheet would compute begin with an apostrophe."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for review in self.latest().values():
            writer.writerow([_plain(getattr(review, name)) for name in COLUMNS])
        return text.getvalue()

    @contextmanager
    def _connected(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        mode = "rwc" if write else "ro"
        try:
            with closing(
                sqlite3.connect(f"{self._path.absolute().as_uri()}?mode={mode}", uri=True, timeout=TIMEOUT_S)
            ) as database:
                yield database
        except sqlite3.Error as error:
            raise ViewerError(
                f"reviews {self._path.name}: {error}; check that the run folder can be written to"
            ) from error


def _plain(value: object) -> object:
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
