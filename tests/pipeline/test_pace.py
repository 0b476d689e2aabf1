"""The pace of tiling: slides per second and the time left."""

from __future__ import annotations

import pytest

from wsi_ips.pipeline import tile_stage as tile
from wsi_ips.pipeline.tile_stage import Pace


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(tile.time, "monotonic", lambda: now[0])
    return now


def test_time_left_counts_slides_and_bytes_evenly(clock):
    pace = Pace({"large": 900, "small": 100})
    clock[0] += 14
    pace.count("large", failed=False)
    # Half of the slides and 90 % of the bytes: 70 % done in 14 s, so 6 s are left.
    assert pace.line() == "1 of 2 slides in 14 s, 0.0714 slides/s, 6 s left"


def test_the_end_has_no_time_left_and_names_failures(clock):
    pace = Pace({"a": 0, "b": 0})
    clock[0] += 4
    pace.count("a", failed=True)
    pace.count("b", failed=False)
    assert pace.line() == "2 of 2 slides (1 failed) in 4 s, 0.5 slides/s"


def test_nothing_done_yet_has_no_time_left(clock):
    pace = Pace({"a": 1})
    clock[0] += 2
    assert pace.line() == "0 of 1 slides in 2 s, 0 slides/s"


def test_a_line_comes_once_a_minute(clock):
    pace = Pace({"a": 1})
    assert not pace.is_note_due()
    clock[0] += 61
    assert pace.is_note_due()
    assert not pace.is_note_due()
