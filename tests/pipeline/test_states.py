"""The table of states: nothing that was told is lost, whatever the process comes to."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from wsi_ips.errors import UnsupportedSlideError
from wsi_ips.pipeline import states
from wsi_ips.pipeline.states import SlideState, StateTable, journal_of, read_states

NAMES = ["a", "b", "c"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "slides.csv"


def opened(path) -> StateTable:
    return StateTable.read(path, lambda name: path.parent / "logs" / f"{name}.txt", NAMES)


def at_once(monkeypatch) -> None:
    monkeypatch.setattr(states, "FLUSH_EVERY_S", -1.0)


def test_changes_are_on_disk_before_the_table_is_written(path, monkeypatch):
    at_once(monkeypatch)
    table = opened(path)
    table.update("a", state="ok", tiles=7, tissue_mm2=0.25)
    table.update("a", tiles=8)
    assert not path.exists()
    assert list(opened(path)) == [SlideState("a", state="ok", tiles=8, tissue_mm2=0.25), *map(SlideState, "bc")]


def test_saving_moves_the_journal_into_both_tables(path, monkeypatch):
    at_once(monkeypatch)
    table = opened(path)
    table.update("b", state="failed", reason='a, "b"\nµ', mpp=0.25)
    table.save()
    assert not journal_of(path).exists()
    assert opened(path)["b"] == table["b"]
    typed = pd.read_parquet(path.with_suffix(".parquet")).set_index("slide_id")
    assert typed.loc["b", "mpp"] == 0.25
    assert typed["tiles"].isna().all()
    assert str(typed["attempts"].dtype) == "Int64"


def test_a_torn_line_costs_that_line_only(path, monkeypatch):
    at_once(monkeypatch)
    table = opened(path)
    for name in NAMES:
        table.update(name, state="ok")
    journal = journal_of(path)
    journal.write_bytes(journal.read_bytes()[:-9])
    again = opened(path)
    assert [again[n].state for n in NAMES] == ["ok", "ok", "pending"]
    again.update("c", state="empty")  # goes on behind the torn line
    assert [row.state for row in opened(path)] == ["ok", "ok", "empty"]


def test_a_table_written_and_a_journal_not_yet_dropped_agree(path, monkeypatch):
    at_once(monkeypatch)
    table = opened(path)
    table.update("a", state="ok", tiles=3)
    kept = journal_of(path).read_bytes()
    table.save()
    journal_of(path).write_bytes(kept)
    assert opened(path)["a"] == table["a"]


def test_the_journal_grows_by_a_line_per_change_and_not_by_the_cohort(path, monkeypatch):
    at_once(monkeypatch)
    table = StateTable.read(path, lambda name: path.parent / name, [f"slide {n}" for n in range(5_000)])
    table.update("slide 3", state="ok")
    table.update("slide 4", state="ok")
    assert [json.loads(line)["slide_id"] for line in journal_of(path).read_text().splitlines()] == [
        "slide 3",
        "slide 4",
    ]


def test_a_failure_keeps_its_traceback_and_success_forgets_it(path):
    table = opened(path)

    def work() -> None:
        raise UnsupportedSlideError("slide a: no reader opens it")

    assert table.fence("a", "predict", work) is None
    assert table.fence("a", "predict", work) is None
    row = table["a"]
    assert (row.state, row.attempts, row.traceback) == ("failed", 2, "logs/a.txt")
    assert "UnsupportedSlideError" in (path.parent / row.traceback).read_text()
    assert table.fence("a", "predict", lambda: 5) == 5
    assert (table["a"].state, table["a"].reason, table["a"].traceback) == ("ok", "", "")


def test_no_file_is_no_state(path):
    assert read_states(path) == []


def test_a_slide_that_left_the_manifest_leaves_the_table(path):
    table = opened(path)
    table.update("a", state="ok")
    table.save()
    assert [row.slide_id for row in StateTable.read(path, lambda _: path, ["b"])] == ["b"]
