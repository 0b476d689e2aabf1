"""Reviews of slides, in the database of the run and as CSV.

Every change adds a row and the newest row of a slide counts, so no review is ever lost.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from wsi_ips.database import read_rows, transaction
from wsi_ips.tables import table_text

VERDICTS = ("", "agree", "disagree")
MAX_NOTE, MAX_REVIEWER = 4000, 80
"""Longest note and longest name, characters."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS reviews (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    slide_id TEXT NOT NULL,
    verdict TEXT NOT NULL,
    note TEXT NOT NULL,
    reviewer TEXT NOT NULL,
    time TEXT NOT NULL,
    probability REAL,
    model_id TEXT NOT NULL
)
"""


@dataclass(frozen=True)
class Review:
    """One review; raises ValueError for an unknown verdict or a text that is too long."""

    slide_id: str
    verdict: str  # ``agree`` or ``disagree`` with the model; empty for a note alone
    note: str = ""
    reviewer: str = ""  # initials or name; may be empty
    time: str = ""  # when it was stored, UTC
    probability: float | None = None  # of the positive class, in the reviewed prediction
    model_id: str = ""  # of the reviewed prediction

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict `{self.verdict}`: known are agree, disagree and none")
        if len(self.note) > MAX_NOTE or len(self.reviewer) > MAX_REVIEWER:
            raise ValueError(f"note or name too long: at most {MAX_NOTE} and {MAX_REVIEWER} characters")


COLUMNS = tuple(field.name for field in fields(Review))
INSERT = f"INSERT INTO reviews ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608
SELECT_NEWEST = f"""
SELECT {", ".join(COLUMNS)} FROM reviews
WHERE number IN (SELECT max(number) FROM reviews GROUP BY slide_id) ORDER BY number
"""  # noqa: S608


class ReviewStore:
    """Reviews of one run in its database, which the first review creates; safe for several threads and processes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, review: Review) -> Review:
        """Store a review and return it with the time; raises RunDatabaseError."""
        kept = replace(review, time=datetime.now(UTC).isoformat(timespec="seconds"))
        with transaction(self._path, creates=SCHEMA) as database:
            database.execute(INSERT, [getattr(kept, name) for name in COLUMNS])
        return kept

    def latest(self) -> dict[str, Review]:
        """Return the newest review of every slide that has one; raises RunDatabaseError."""
        reviews = [Review(*row) for row in read_rows(self._path, "reviews", SELECT_NEWEST)]  # type: ignore[arg-type]
        return {review.slide_id: review for review in reviews}

    def csv(self) -> str:
        """Return the newest review of every slide as CSV; text that looks like a formula begins with an apostrophe."""
        return table_text(COLUMNS, ([getattr(review, name) for name in COLUMNS] for review in self.latest().values()))
