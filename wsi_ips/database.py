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

BUSY_TIMEOUT_S = 30.0
"""How long a transaction waits for the lock of another process."""


@contextmanager
def transaction(path: Path, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a database for one transaction: committed when the block ends, rolled back when it raises.

    Parameters
    ----------
    path
        The file. Writing creates it, reading does not.
    write
        Whether the block writes.

    Raises
    ------
    sqlite3.Error
        The file cannot be opened, is no database, or stays locked.
    """
    # A reader opens it for writing too: it may have to roll back what a killed writer left.
    mode = "rwc" if write else "rw"
    address = f"{path.absolute().as_uri()}?mode={mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S)) as database:
        if write:
            database.execute("PRAGMA journal_mode = DELETE")
            database.execute("PRAGMA synchronous = FULL")
        with database:
            yield database
