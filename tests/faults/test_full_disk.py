"""A disk that takes no more, in every stage: one message with path and space, and afterwards nothing is different.

A limit on the size of files (`ulimit -f`) stands in for the disk: the system refuses the write in the same place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.small_cohort import write_nodes
from wsi_ips.cluster.jobs import spread
from wsi_ips.cluster.process import Job
from wsi_ips.config import ComputeSection
from wsi_ips.errors import Failure, StorageError, fenced
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.provenance import atomic_folder, atomic_path, atomic_write_bytes

LIMITS = {"tile": 200, "features": 5_000, "train": 20_000, "predict": 200, "heatmap": 2_000, "report": 2_000}
RUN = """
import json, resource, sys
from typer.testing import CliRunner
from wsi_ips import provenance
from wsi_ips.cli import app
provenance._commit = lambda: None  # the limit would make git leave its own lock in the checkout
recipe, limits, found = sys.argv[1], json.loads(sys.argv[2]), {}
for stage, limit in limits.items():
    command = ["run", recipe] + ([] if stage == "report" else ["--until", stage])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    failed = CliRunner().invoke(app, command)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    done = CliRunner().invoke(app, command)
    found[stage] = [failed.exit_code, failed.output, done.exit_code, done.output]
print(json.dumps(found))
"""


def cohort(folder: Path, **changes: object) -> Path:
    return write_nodes(folder, **{"compute": {"workers": 0, "device": "cpu"}} | changes)


def run(recipe: Path, limits: dict[str, int]) -> dict[str, list]:
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(recipe), json.dumps(limits)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def results(out: Path) -> list[object]:
    weights = hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()
    figures = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [(figure["epoch"], figure["loss"]) for figure in figures]
    scores = [read_scores(out / "scores.zarr", name) for name in ("s5", "s6")]
    found = [(s.probabilities, s.fingerprint, s.tile_probability.tolist()) for s in scores]
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return [weights, losses, found, [name for name in files if "tfevents" not in name and not name.startswith("logs")]]


@pytest.mark.slow
def test_every_stage_says_what_is_wrong_and_goes_on_when_there_is_space(tmp_path):
    for name in ("full", "ample"):
        (tmp_path / name).mkdir()
    recipe = cohort(tmp_path / "full")
    found = run(recipe, LIMITS)
    for stage, (code, output, code_after, output_after) in found.items():
        assert code == 2, (stage, output)
        assert output.count("Error:") == 1, (stage, output)
        assert "bug" not in output
        assert str(tmp_path / "full" / "out") in output.replace("\n", ""), output
        assert "File too large" in output, (stage, output)
        assert "MB are free there" in output
        assert code_after == 0, (stage, output_after)
    run(cohort(tmp_path / "ample"), {"features": 10**9, "report": 10**9})
    assert results(tmp_path / "full" / "out") == results(tmp_path / "ample" / "out")


def test_a_message_names_path_and_space(tmp_path):
    path = tmp_path / "a" / "b.bin"

    def write(place: Path, error: Exception) -> None:
        with atomic_path(path) if place == path else atomic_folder(place) as temporary:
            (temporary if place == path else temporary / "part").write_bytes(bytes(2_500_000))
            raise error

    for place, error in (
        (path, OSError(errno.ENOSPC, "No space left on device")),
        (path.parent / "c", RuntimeError("serializing: I/O error: No space left on device (os error 28)")),
    ):
        said = (
            rf"{place.name}: cannot be written \(No space left on device\). It needs at least 2\.5 MB; [\d.]+ MB are fr"
        )
        with pytest.raises(StorageError, match=said):
            write(place, error)
    assert list((tmp_path / "a").iterdir()) == []


def test_a_read_only_folder_is_the_disks_fault_and_another_error_is_not(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        atomic_write_bytes(tmp_path / "file" / "x", b"")
    with pytest.raises(StorageError, match="Permission denied"), atomic_path(tmp_path / "x") as temporary:
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))
    with pytest.raises(PermissionError, match="a slide"), atomic_path(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "a slide", "/elsewhere/slide.svs")


def fill_up(path: str) -> None:
    with atomic_path(Path(path)):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_no_fault_of_the_slide_that_met_it(tmp_path, workers):
    jobs = [Job(f"s{n}", f"{__name__}:fill_up", str(tmp_path / f"s{n}")) for n in range(5)]
    outcomes = []
    with (
        pytest.raises(StorageError, match=r"s\d: cannot be written \(Disk quota exceeded\)"),
        spread(ComputeSection(workers=workers), jobs) as found,
    ):
        outcomes += [outcome for outcome in found if outcome is not None]
    assert outcomes == []
    assert isinstance(fenced(lambda: np.zeros(2)[5]), Failure)
    with pytest.raises(StorageError):
        fenced(lambda: fill_up(str(tmp_path / "s")))


ORPHAN = """
import os, signal, subprocess, sys
code = "import os, time; from wsi_ips.training import processes as p; import torch; p.LOOK_FOR_PARENT_S = 0.05; " \\
    "from wsi_ips.cluster.machine import Launch\\n" \\
    "with p.Processes.joined(Launch.of(), device='cpu'): print(os.getpid(), flush=True); time.sleep(100)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_training_process_ends_with_a_killed_torchrun(tmp_path):
    torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | torchrun | {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "1"},
    )
    pid, waited = int(done.stdout), threading.Event()
    for _ in range(200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        waited.wait(0.05)
    pytest.fail("it trained on without torchrun")
