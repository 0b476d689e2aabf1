"""Real faults, and a cohort that goes on: each slide ends in the right state with the right reason."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil
import pytest
from typer.testing import CliRunner

from tests.faults.slides import digest, recipe_of, started, write_cohort, write_good, write_huge_annotation
from wsi_ips.cli import app
from wsi_ips.pipeline import Run, run_stage
from wsi_ips.tiles.store import slide_ids


def states_of(folder: Path) -> dict:
    return {row.slide_id: row for row in Run.open(recipe_of(folder)).states}


def job_processes() -> list[psutil.Process]:
    """Processes of slides beneath this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("wsi_ips.cluster.process" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(condition, seconds: float = 180.0):
    """Wait for something that must come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("it did not come")


@contextmanager
def tiling(folder: Path, **overrides: object):
    """Tiling in a thread of this process."""
    thread = threading.Thread(target=run_stage, args=(recipe_of(folder, **overrides), "tile"))
    thread.start()
    try:
        yield thread
    finally:
        thread.join(timeout=300)
        assert not thread.is_alive()
    assert job_processes() == []


def test_corrupt_files_fail_by_name_and_the_rest_is_done(tmp_path):
    good = write_good(tmp_path, 3)
    whole = (tmp_path / good[0]).read_bytes()
    broken = {
        "empty.svs": b"",
        "text.svs": b"not a slide",
        "cut.tif": whole[: len(whole) // 3],
        "spoiled.tif": whole[:1000] + bytes(len(whole) // 2) + whole[1000 + len(whole) // 2 :],
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    write_cohort(tmp_path, [*good, *broken, "missing.svs"])
    result = CliRunner().invoke(app, ["tile", str(tmp_path / "recipe.yaml")])
    assert result.exit_code == 3, result.output
    states = states_of(tmp_path)
    assert {name for name, row in states.items() if row.state == "ok"} == {Path(n).stem for n in good}
    for name, reason in {"empty": "0 bytes", "text": "no reader", "missing": "no such file"}.items():
        assert reason in states[name].reason
    for name in ("empty", "text", "cut", "spoiled", "missing"):
        assert states[name].state == "failed"
        assert name in states[name].reason
        assert states[name].attempts == 1
        assert "Traceback" in (tmp_path / "out" / states[name].traceback).read_text()
    again = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), "--retry", "--reason", "no READER"])
    assert again.exit_code == 3
    assert "1 of 1 slides" in again.output or "2 of 2 slides" in again.output
    assert states_of(tmp_path)["text"].attempts == 2
    assert states_of(tmp_path)["missing"].attempts == 1


def test_real_malformed_files_fail_by_name(tmp_path, real_data):
    files = [p for p in sorted((real_data / "malformed").rglob("*")) if p.is_file()]
    for path in files:
        shutil.copy(path, tmp_path)
    write_cohort(tmp_path, [p.name for p in files] + write_good(tmp_path, 1))
    run_stage(recipe_of(tmp_path, compute__slide_timeout_s=120), "tile")
    states = states_of(tmp_path)
    assert states.pop("good_00").state == "ok"
    assert {row.state for row in states.values()} == {"failed"}
    assert all(len(row.reason) > 20 for row in states.values())


def test_a_slide_that_hangs_is_stopped_and_named(tmp_path):
    good = write_good(tmp_path, 2)
    os.mkfifo(tmp_path / "hangs.svs")
    write_cohort(tmp_path, ["hangs.svs", *good], slide_timeout_s=8)
    run = run_stage(recipe_of(tmp_path), "tile")
    row = run.states["hangs"]
    assert row.state == "failed"
    assert "slide hangs: took more than 8 s" in row.reason
    assert "content_identity" in (tmp_path / "out" / row.traceback).read_text()
    assert run.states.count("ok") == 2
    assert not job_processes()


def test_kill_9_is_an_attempt_of_that_slide_alone(tmp_path):
    good = write_good(tmp_path, 3)
    os.mkfifo(tmp_path / "killed.tif")
    write_cohort(tmp_path, [*good, "killed.tif"], workers=1)
    with tiling(tmp_path):
        until(lambda: len(slide_ids(tmp_path / "out" / "tiles.zarr")) == 3)  # the FIFO is the smallest and comes last
        (victim,) = until(job_processes)
        time.sleep(0.3)
        (tmp_path / "killed.tif").unlink()
        shutil.copy(tmp_path / good[0], tmp_path / "killed.tif")
        victim.kill()
    states = states_of(tmp_path)
    assert {name: (row.state, row.attempts) for name, row in states.items()} == {
        "good_00": ("ok", 1),
        "good_01": ("ok", 1),
        "good_02": ("ok", 1),
        "killed": ("ok", 2),
    }


def test_a_slide_that_is_killed_each_time_fails_and_says_so(tmp_path):
    good = write_good(tmp_path, 2)
    os.mkfifo(tmp_path / "killed.tif")
    write_cohort(tmp_path, [*good, "killed.tif"], workers=1)
    seen: set[int] = set()
    with tiling(tmp_path):
        until(lambda: len(slide_ids(tmp_path / "out" / "tiles.zarr")) == 2)
        for _ in range(2):
            victim = until(lambda: next((p for p in job_processes() if p.pid not in seen), None))
            seen.add(victim.pid)
            time.sleep(0.5)
            victim.kill()
    row = states_of(tmp_path)["killed"]
    assert (row.state, row.attempts) == ("failed", 2)
    assert "slide killed: its process was killed (SIGKILL)" in row.reason


def test_a_slide_that_needs_too_much_memory_fails_alone(tmp_path):
    good = write_good(tmp_path, 3)
    write_huge_annotation(tmp_path / "huge.xml")
    write_cohort(tmp_path, good, worker_memory_gb=0.5)
    table = pd.read_csv(tmp_path / "manifest.csv")
    table["annotation"] = ["", "huge.xml", ""]
    table.to_csv(tmp_path / "manifest.csv", index=False)
    states = {row.slide_id: row for row in run_stage(recipe_of(tmp_path), "tile").states}
    assert {name: row.state for name, row in states.items()} == {"good_00": "ok", "good_01": "failed", "good_02": "ok"}
    assert "slide good_01: out of memory" in states["good_01"].reason
    assert "compute.worker_memory_gb" in states["good_01"].reason
    assert 500 < states["good_01"].rss_mb < 2000


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort that nothing happened to; tiled in one process, one slide after another."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_cohort(folder, write_good(folder, 16), workers=0)
    run = run_stage(recipe_of(folder), "tile")
    assert run.states.count("ok") == 16
    return folder


@pytest.fixture
def untouched(undisturbed: Path, tmp_path: Path) -> Path:
    """The same slides, nothing done yet, to be done by two processes."""
    folder = tmp_path / "cohort"
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns("out"))
    write_cohort(folder, sorted(p.name for p in folder.glob("*.tif")))
    return folder


@pytest.mark.parametrize("store", ["zarr", "hdf5"])
def test_killed_and_resumed_is_bit_for_bit_the_same(undisturbed, untouched, store):
    name = "tiles.zarr" if store == "zarr" else "tiles.h5"
    root = untouched / "out" / name
    process = started("tile", untouched / "recipe.yaml", "--set", f"tiles.store={store}")
    until(lambda: len(slide_ids(root)) >= 3)
    children = psutil.Process(process.pid).children(recursive=True)
    with process:  # closes its pipe
        process.kill()
    psutil.wait_procs(children, timeout=30)
    assert not any(child.is_running() for child in children)
    committed = {entry: (root / entry).stat().st_mtime_ns for entry in os.listdir(root) if entry[0] != "."}
    assert 3 <= len(committed) < 16
    run = run_stage(recipe_of(untouched, tiles__store=store), "tile")
    assert run.states.count("ok") == 16
    assert {entry: (root / entry).stat().st_mtime_ns for entry in committed} == committed  # none was done twice
    if store == "zarr":
        assert digest(root) == digest(undisturbed / "out" / "tiles.zarr")
    else:
        other = run_stage(recipe_of(undisturbed, tiles__store="hdf5"), "tile")
        assert digest(root) == digest(Path(other.folder.tiles))
    assert {row.tissue_mm2 for row in run.states} == {row.tissue_mm2 for row in Run.open(recipe_of(undisturbed)).states}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_is_quick_clean_and_resumed(undisturbed, untouched, how):
    root = untouched / "out" / "tiles.zarr"
    process = started("tile", untouched / "recipe.yaml")
    until(lambda: len(slide_ids(root)) >= 2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 130, output
    assert "the same command resumes" in output
    assert "Traceback" not in output
    psutil.wait_procs(children, timeout=30)
    assert not any(child.is_running() for child in children)
    states = states_of(untouched)
    assert {row.state for row in states.values()} == {"ok", "pending"}
    run_stage(recipe_of(untouched), "tile")
    assert digest(root) == digest(undisturbed / "out" / "tiles.zarr")
