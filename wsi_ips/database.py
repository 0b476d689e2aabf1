"""Transactions on the one SQLite file of a run (``run.sqlite``): states of its slides, and reviews.

A connection lives for one transaction, and a transaction is on disk when its block ends: what was recorded survives
`kill -9` and a power failure. The journal is SQLite's rollback journal: WAL needs shared memory, which network file
systems lack. The command of a run writes the states, the viewer writes the reviews; each waits for the other's lock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from wsi_ips.errors import RunDatabaseError
from wsi_ips.provenance import storage_named

BUSY_TIMEOUT_S = 30.0  # how long a transaction waits for the lock of another process


@contextmanager
def transaction(path: Path, *, creates: str = "") -> Iterator[sqlite3.Connection]:
    """Open a database for one transaction: committed when the block ends, rolled back when it raises.

    ``creates`` is the SQL statement of the table to write to; without it the block only reads, and the file must exist.

    Raises
    ------
    RunDatabaseError
        The file cannot be opened, is not a database, or stays locked.
    StorageError
        The disk is full or read-only.
    """
    # A reader opens the file for writing too: it may have to roll back what a killed writer left.
    address = f"{path.absolute().as_uri()}?mode={'rwc' if creates else 'rw'}"
    try:
        with storage_named(path), closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S)) as database:
            if creates:
                database.execute("PRAGMA journal_mode = DELETE")
                database.execute("PRAGMA synchronous = FULL")
                database.execute(creates)
            with database:
                yield database
    except sqlite3.Error as error:
        raise RunDatabaseError(
            f"{path.parent.name}/{path.name}: {error}; check that the run folder can be written to and the disk is not "
            "full; a damaged file can be moved away: `wsi-ips tile` recognises finished slides by their tile index"
        ) from error


def read_rows(path: Path, table: str, query: str) -> list[tuple[object, ...]]:
    """Return the rows of a query; none where the file or the table does not exist."""
    if not path.exists():
        return []
    with transaction(path) as database:
        known = database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchone()
        return database.execute(query).fetchall() if known else []
