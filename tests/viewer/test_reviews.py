"""Reviews are never lost, never mixed up, and no spreadsheet computes them."""

from __future__ import annotations

import csv
import io
from concurrent.futures import ThreadPoolExecutor

import pytest

from wsi_ips.errors import RunDatabaseError
from wsi_ips.viewer.reviews import Review, ReviewStore


def test_reading_makes_no_file(tmp_path):
    store = ReviewStore(tmp_path / "run.sqlite")
    assert store.latest() == {}
    assert store.csv().splitlines() == ["slide_id,verdict,note,reviewer,time,probability,model_id"]
    assert list(tmp_path.iterdir()) == []


def test_the_newest_counts_and_the_older_ones_stay(tmp_path):
    store = ReviewStore(tmp_path / "a folder? #1" / "run.sqlite")
    (tmp_path / "a folder? #1").mkdir()
    store.add(Review("s1", "agree", "first"))
    store.add(Review("s2", "disagree", probability=0.25, model_id="m"))
    store.add(Review("s1", "", "second thoughts", "AB"))
    latest = store.latest()
    assert list(latest) == ["s2", "s1"]
    assert (latest["s1"].verdict, latest["s1"].note) == ("", "second thoughts")
    assert latest["s2"].probability == 0.25
    assert latest["s1"].time.endswith("+00:00")
    import sqlite3

    with sqlite3.connect(tmp_path / "a folder? #1" / "run.sqlite") as database:
        assert database.execute("SELECT count(*) FROM reviews").fetchone() == (3,)
    database.close()


def test_many_at_a_time_are_all_kept(tmp_path):
    store = ReviewStore(tmp_path / "run.sqlite")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.add(Review(f"s{n}", "agree", f"note {n}")), range(40)))
    assert {r.note for r in store.latest().values()} == {f"note {n}" for n in range(40)}


@pytest.mark.parametrize(
    "note",
    [
        "=1+1",
        " =1",
        "+4a",
        "-1+1",
        "@x",
        "\t=x",
        "\uff1d1",
        "a, b",
        'say "x"',
        "two\nlines",
        "plain",
        "'quoted",
        "'; DROP TABLE review",
    ],
)
def test_a_note_comes_back_from_the_csv_and_is_no_formula(tmp_path, note):
    store = ReviewStore(tmp_path / "run.sqlite")
    store.add(Review("s", "agree", note))
    row = next(csv.DictReader(io.StringIO(store.csv())))
    assert row["note"].removeprefix("'") == note.removeprefix("'")
    assert not row["note"].strip().startswith(("=", "+", "-", "@", "\uff1d"))
    assert store.latest()["s"].note == note


@pytest.mark.parametrize(
    "given", [{"verdict": "maybe"}, {"verdict": "agree", "note": "x" * 4001}, {"verdict": "", "reviewer": "x" * 81}]
)
def test_other_verdicts_and_endless_texts_are_refused(given):
    with pytest.raises(ValueError, match=r"verdict|too long"):
        Review("s", **given)


def test_what_cannot_be_kept_is_said(tmp_path):
    with pytest.raises(RunDatabaseError, match=r"run\.sqlite.*can be written"):
        ReviewStore(tmp_path / "no folder" / "run.sqlite").add(Review("s", "agree"))
