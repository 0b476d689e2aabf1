"""Figures of a running stage: when it will be done, and what it waits for."""

from __future__ import annotations

import pytest

from wsi_ips.cluster import Usage
from wsi_ips.pipeline.tiling import throughput
from wsi_ips.pipeline.tiling.throughput import Throughput, figures_line, read_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    return now


def meter(tmp_path, sizes, *, workers=1, few=False):
    return Throughput(sizes, workers=workers, path=tmp_path / "progress.json", few_for_memory=few)


def test_time_left_counts_slides_and_bytes_evenly(tmp_path, clock):
    made = meter(tmp_path, {"large": 900, "small": 100})
    clock[0] += 14
    made.ended("large", Usage(wall_s=14, cpu_s=14), megapixels=28, failed=False)
    figures = made.figures()
    assert figures["seconds_left"] == 6.0  # half of the slides and 90 % of the bytes: 70 % done in 14 s
    assert figures["megapixels_per_s"] == 2.0
    assert figures["slides_done"] == 1


@pytest.mark.parametrize(
    ("usage", "few", "bound"),
    [
        (Usage(wall_s=10, cpu_s=9), False, "cpu"),
        (Usage(wall_s=10, cpu_s=9), True, "memory"),
        (Usage(wall_s=10, cpu_s=2), False, "reading"),
        (Usage(wall_s=10, cpu_s=2, queued_s=7), False, "cpu"),
        (Usage(wall_s=2, cpu_s=2), False, "too few slides at a time"),
    ],
)
def test_it_says_what_bounds_it(tmp_path, clock, usage, few, bound):
    made = meter(tmp_path, {"a": 1, "b": 1}, few=few)
    clock[0] += 10
    made.ended("a", usage, megapixels=1, failed=False)
    assert made.figures()["bound_by"] == bound
    assert f"bound by {bound}" in made.line()


def test_others_can_read_it_while_it_runs_and_not_after(tmp_path, clock):
    made = meter(tmp_path, {"a": 1, "b": 1}, workers=2)
    assert read_progress(tmp_path / "progress.json") is None
    made.ended("a", Usage(wall_s=1, cpu_s=1), megapixels=1, failed=True)
    assert made.tick() is None
    clock[0] += 61
    assert "1 of 2 slides (1 failed)" in (made.tick() or "")
    figures = read_progress(tmp_path / "progress.json")
    assert figures is not None
    assert figures["slides_failed"] == 1
    assert figures_line(figures)
    made.close()
    assert read_progress(tmp_path / "progress.json") is None
