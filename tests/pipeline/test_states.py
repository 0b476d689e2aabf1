"""The states of a run: nothing recorded is lost, whatever happens to the process."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pandas as pd
import pytest

from wsi_ips.database import transaction
from wsi_ips.errors import RunDatabaseError, UnsupportedSlideError
from wsi_ips.pipeline import slide_states as states
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.slide_states import SlideState, StateTable, read_states
from wsi_ips.viewer.reviews import Review, ReviewStore

NAMES = ["a", "b", "c"]


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def opened(folder: RunFolder) -> StateTable:
    return StateTable.read(folder, NAMES)


def test_a_change_is_on_disk_at_once_and_the_export_comes_later(folder):
    table = opened(folder)
    table.update("a", state="ok", tiles=7, tissue_mm2=0.25)
    table.update("a", tiles=8)
    assert not folder.states.exists()
    assert list(opened(folder)) == [SlideState("a", state="ok", tiles=8, tissue_mm2=0.25), *map(SlideState, "bc")]


def test_saving_exports_the_whole_table(folder):
    table = opened(folder)
    table.update("b", state="failed", reason='a, "b"\nµ', mpp=0.25)
    table.save()
    assert opened(folder)["b"] == table["b"]
    lines = pd.read_csv(folder.states, dtype=str, keep_default_na=False).set_index("slide_id")
    assert lines.index.tolist() == NAMES
    assert lines.columns.tolist() == list(states.COLUMNS[1:])
    assert lines.loc["b", ["state", "reason", "mpp", "tiles"]].tolist() == ["failed", 'a, "b"\nµ', "0.25", ""]


def test_a_database_of_an_earlier_version_gets_the_new_columns(folder):
    opened(folder).update("a", state="ok", tiles=7)
    with closing(sqlite3.connect(folder.database)) as database:
        for name in ("share_not_analysed", "not_analysed_mm2"):
            database.execute(f"ALTER TABLE slides DROP COLUMN {name}")
        database.commit()
    table = opened(folder)
    assert (table["a"].tiles, table["a"].not_analysed) == (7, None)
    table.update("b", state="ok", share_not_analysed=0.25, not_analysed_mm2="pen 1.5")
    assert opened(folder)["b"].not_analysed.mm2 == {"pen": 1.5}
    assert opened(folder)["a"].tiles == 7


def test_parquet_has_types(folder):
    pytest.importorskip("pyarrow")
    table = opened(folder)
    table.update("b", mpp=0.25)
    table.save()
    typed = pd.read_parquet(folder.states_typed).set_index("slide_id")
    assert typed.loc["b", "mpp"] == 0.25
    assert typed["tiles"].isna().all()
    assert str(typed["attempts"].dtype) == "Int64"


def test_the_core_works_without_pyarrow(folder, monkeypatch):
    monkeypatch.setattr(states, "find_spec", lambda _: None)
    opened(folder).save()
    assert folder.states.exists()
    assert not folder.states_typed.exists()


def test_a_long_stage_exports_in_between(folder, monkeypatch):
    monkeypatch.setattr(states, "EXPORT_EVERY_S", -1.0)
    opened(folder).update("a", state="empty")
    assert "a,empty" in folder.states.read_text()


KILLED = """
import os, signal, sys
from pathlib import Path
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.slide_states import StateTable
table = StateTable.read(RunFolder(Path(sys.argv[1])), [str(n) for n in range(20)])
for n in range(20):
    table.update(str(n), state="ok", tiles=n)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_recorded_is_lost_when_the_process_is_killed(folder):
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder.root)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [(row.slide_id, row.state, row.tiles) for row in read_states(folder.database)] == [
        (str(n), "ok", n) for n in range(20)
    ]


KILLED_IN_A_TRANSACTION = """
import os, signal, sys
from pathlib import Path
from wsi_ips.database import transaction
with transaction(Path(sys.argv[1])) as database:
    database.execute("PRAGMA cache_spill = 1")
    database.execute("PRAGMA cache_size = 1")
    for n in range(5000):
        database.execute("UPDATE slides SET reason = ? WHERE slide_id = 'a'", ("x" * 1000,))
        database.execute("INSERT INTO slides (slide_id, reason) VALUES (?, ?)", (f"extra {n}", "x" * 1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_half_a_transaction_is_rolled_back_by_the_next_reader(folder):
    opened(folder).update("a", state="ok", reason="whole")
    subprocess.run([sys.executable, "-c", KILLED_IN_A_TRANSACTION, str(folder.database)], check=False)
    assert os.path.exists(f"{folder.database}-journal")
    assert read_states(folder.database) == [SlideState("a", state="ok", reason="whole")]


def test_a_change_writes_its_row_and_not_the_cohort(folder):
    table = StateTable.read(folder, [f"slide {n}" for n in range(5_000)])
    table.update("slide 3", state="ok")
    table.update("slide 4", state="ok")
    assert [row.slide_id for row in read_states(folder.database)] == ["slide 3", "slide 4"]


def test_many_threads_record_at_a_time(folder):
    table = StateTable.read(folder, [str(n) for n in range(40)])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: table.update(str(n), state="ok", tiles=n), range(40)))
    assert {row.slide_id: row.tiles for row in read_states(folder.database)} == {str(n): n for n in range(40)}


def test_no_shared_memory_is_needed(folder):
    """WAL does not work on network file systems."""
    opened(folder).update("a", state="ok")
    with closing(sqlite3.connect(folder.database)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert sorted(path.name for path in folder.root.iterdir()) == ["run.sqlite"]


def test_states_and_reviews_share_the_file(folder):
    store = ReviewStore(folder.database)
    folder.root.mkdir()
    store.add(Review("a", "agree", "clear"))
    assert read_states(folder.database) == []
    table = opened(folder)
    table.update("a", state="ok")
    table.save()
    assert store.latest()["a"].note == "clear"
    assert read_states(folder.database)[0].state == "ok"


def test_a_file_that_is_no_database_is_named_with_the_remedy(folder):
    folder.root.mkdir()
    folder.database.write_bytes(b"this is no database, but long enough to be taken for one" * 40)
    with pytest.raises(RunDatabaseError, match=r"run\.sqlite.*can be moved away: `wsi-ips tile`"):
        opened(folder)


def test_a_failed_block_changes_nothing(folder):
    opened(folder).update("a", state="ok")
    statements = "DELETE FROM slides", "no SQL"
    with pytest.raises(RunDatabaseError), transaction(folder.database) as database:
        list(map(database.execute, statements))
    assert len(read_states(folder.database)) == 1


def test_a_failure_keeps_its_traceback_and_success_clears_it(folder):
    table = opened(folder)

    def work() -> None:
        raise UnsupportedSlideError("slide a: no reader opens it")

    assert table.fence("a", "predict", work) is None
    assert table.fence("a", "predict", work) is None
    row = table["a"]
    assert (row.state, row.attempts, row.traceback) == ("failed", 2, "logs/a.txt")
    assert "UnsupportedSlideError" in (folder.root / row.traceback).read_text()
    assert table.fence("a", "predict", lambda: 5) == 5
    assert (table["a"].state, table["a"].reason, table["a"].traceback) == ("ok", "", "")


def test_no_file_is_no_state(folder):
    assert read_states(folder.database) == []


def test_a_slide_that_left_the_manifest_leaves_the_table(folder):
    table = opened(folder)
    table.update("a", state="ok")
    table.save()
    fewer = StateTable.read(folder, ["b"])
    fewer.save()
    assert [row.slide_id for row in read_states(folder.database)] == ["b"]
