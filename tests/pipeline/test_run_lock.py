"""One writer per run folder: a second is refused by name, a dead one is in nobody's way, its leftovers are removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from typer.testing import CliRunner

from tests.faults.slides import recipe_of, write_cohort, write_good
from wsi_ips.cli import app
from wsi_ips.errors import RunLockedError
from wsi_ips.pipeline import Run, run_lock, run_stage
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.run_lock import sole_writer
from wsi_ips.provenance import _sibling, atomic_folder, atomic_path

HOLD = """
import sys, time
from pathlib import Path
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.run_lock import sole_writer
with sole_writer(RunFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""
ABANDON = """
import os, signal, sys
from pathlib import Path
from wsi_ips.provenance import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes into the run folder ``out``."""
    (tmp_path / "out").mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_refused_by_name_and_readers_are_not(tmp_path, holder):
    write_cohort(tmp_path, write_good(tmp_path, 1))
    result = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.yaml")])
    assert result.exit_code == 2
    assert f"another command writes to it, process {holder.pid} of " in result.output
    assert "give this command another `output`" in result.output
    assert CliRunner().invoke(app, ["status", str(tmp_path / "recipe.yaml")]).exit_code == 0
    with Run.open(recipe_of(tmp_path)) as run:
        assert run.states["good_00"].state == "pending"
    other = recipe_of(tmp_path, output=str(tmp_path / "elsewhere"), tiles__shared=str(tmp_path / "out"))
    assert run_stage(other, "tile").states["good_00"].state == "ok"  # shared tiles are written side by side


def test_a_killed_writer_is_in_nobodys_way(tmp_path, holder):
    folder = RunFolder(tmp_path / "out")
    assert json.loads(folder.lock.read_text())["pid"] == holder.pid
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert folder.lock.exists()
    with sole_writer(folder), sole_writer(folder):
        assert json.loads(folder.lock.read_text())["pid"] == os.getpid()
    assert list(folder.root.iterdir()) == []


def test_of_many_that_ask_at_once_one_writes_at_a_time(tmp_path):
    (tmp_path / "out").mkdir()
    count = """
import sys, time
from pathlib import Path
from wsi_ips.errors import RunLockedError
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.run_lock import sole_writer
folder, done = Path(sys.argv[1]), 0
while done < 25:
    try:
        with sole_writer(RunFolder(folder)):
            (folder / "inside").mkdir()  # fails where another is inside
            (folder / "inside").rmdir()
            done += 1
    except RunLockedError:
        time.sleep(0.001)
"""
    asking = [subprocess.Popen([sys.executable, "-c", count, str(tmp_path / "out")]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in asking] == [0, 0, 0]


@pytest.mark.parametrize("alive", [True, False])
def test_a_lock_of_another_machine_holds_while_it_gives_signs_of_life(tmp_path, monkeypatch, alive):
    monkeypatch.setattr(run_lock, "SILENT_S", 1.0)
    monkeypatch.setattr(run_lock, "LOOK_EVERY_S", 0.05)
    folder, notes = RunFolder(tmp_path), []
    folder.lock.write_text(json.dumps({"owner": "ann", "host": "elsewhere", "pid": 7, "since": "noon"}))
    if alive:
        threading.Timer(0.3, os.utime, (folder.lock,)).start()
        with pytest.raises(RunLockedError, match="process 7 of ann on elsewhere, since noon"), sole_writer(folder):
            pass
        assert "ann" in folder.lock.read_text()
        return
    with sole_writer(folder, notes.append):
        assert json.loads(folder.lock.read_text())["pid"] == os.getpid()
    assert "waiting up to 1 s for a sign of life" in notes[0]


def test_where_a_file_system_has_no_locks_the_process_id_decides(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(run_lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", unsupported)
    monkeypatch.setattr(run_lock, "SILENT_S", 0.2)
    folder = RunFolder(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = {"owner": "ann", "host": run_lock.platform.node(), "pid": ended.pid, "since": "noon"}
    folder.lock.write_text(json.dumps(owner))
    with sole_writer(folder, pytest.fail):
        pass
    assert not folder.lock.exists()


def test_the_lock_is_renewed_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "RENEW_EVERY_S", 0.05)
    folder = RunFolder(tmp_path)
    with sole_writer(folder):
        os.utime(folder.lock, (0, 0))
        for _ in range(100):
            if folder.lock.stat().st_mtime > 0:
                break
            time.sleep(0.05)
        assert folder.lock.stat().st_mtime > 0


def test_the_next_writer_removes_what_killed_ones_left(tmp_path):
    folder = RunFolder(tmp_path / "out")
    places = [folder.handoff("s"), folder.overlay("s", "attention"), folder.scores / "s", folder.model, folder.facts]
    places += [folder.root / "tiles.zarr" / "s", folder.features / "e" / "s", folder.training / "state.safetensors"]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-c", ABANDON, str(place)], check=False)
    old = folder.overlay("s", "probability").with_name(".s_probability.png.0a1b2c3d.png")  # of an earlier version
    old.touch()
    kept = [folder.handoffs / ".DS_Store", folder.handoff("s") / "mine", folder.root / "fold_0" / ".x.0a1b2c3d.csv"]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    alive = _sibling(folder.root / "tiles.zarr" / "t")  # another run may be writing shared tiles now
    alive.mkdir()
    assert len([path for path in folder.root.rglob(".*") if path.name.count("-") == 2]) == len(places) + 1
    with sole_writer(folder):
        pass
    assert sorted(folder.root.rglob(".*")) == sorted([kept[0], kept[2], alive])
    assert kept[1].exists()


def test_names_of_temporaries_are_recognised_and_those_of_people_are_not(tmp_path):
    from wsi_ips.provenance import LEFTOVER

    with atomic_path(tmp_path / "slide 1.ome.tif") as one, atomic_folder(tmp_path / "slide (2) µ") as two:
        for path in (one, two):
            made = LEFTOVER.fullmatch(path.name)
            assert made is not None
            assert int(made["pid"]) == os.getpid()
    for name in (".DS_Store", ".hidden", ".slide.png", "slide.0a1b2c3d.png", "slide_003"):
        assert LEFTOVER.fullmatch(name) is None


def test_two_trainings_in_one_folder_end_in_one_refusal(tmp_path):
    """The lock is taken before anything is written: the model of the first training stays its own."""
    write_cohort(tmp_path, write_good(tmp_path, 2))
    inside, go_on = threading.Event(), threading.Event()
    original = run_lock._clean

    def pause(folder):
        original(folder)
        inside.set()
        go_on.wait(60)

    folder = RunFolder(tmp_path / "out")
    run_lock._clean = pause
    try:
        first = threading.Thread(target=lambda: run_stage(recipe_of(tmp_path), "tile"))
        first.start()
        assert inside.wait(60)
        command = [sys.executable, "-m", "wsi_ips", "train", str(tmp_path / "recipe.yaml"), "--set", "seed=5"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"process {os.getpid()} of" in done.stderr
        assert [path.name for path in folder.root.iterdir()] == [folder.lock.name]
    finally:
        run_lock._clean = original
        go_on.set()
        first.join(120)
