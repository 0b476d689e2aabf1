"""The same cohort on this machine, on two worker processes and behind a remote scheduler: the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import psutil
import pytest
from distributed.comm.core import CommClosedError

from tests.faults.slides import ROOT, digest, recipe_of, started, write_cohort, write_good
from tests.faults.test_faults import until
from wsi_ips.cluster.dask_pool import open_pool
from wsi_ips.cluster.machine import available_cores, local_workers, memory_bytes, resident_mb
from wsi_ips.cluster.process import Limits
from wsi_ips.errors import ClusterError, RecipeError
from wsi_ips.pipeline import run_stage
from wsi_ips.tiles.store import slide_ids

SLIDES = 10
LIMITS = Limits(timeout_s=60)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiled on this machine by two processes, into ``out``."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, write_good(folder, SLIDES))
    assert run_stage(recipe_of(folder), "tile").states.count("ok") == SLIDES
    return folder


@pytest.fixture
def two_worker_processes():
    """Dask workers as processes of their own, with nannies, behind a scheduler's address."""
    from distributed import LocalCluster

    with (
        warnings.catch_warnings(),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            env={"PYTHONPATH": str(ROOT)},
        ) as cluster,
    ):
        yield cluster


def test_two_worker_processes_give_the_same_bits_though_one_is_killed(cohort, two_worker_processes, tmp_path):
    root = tmp_path / "out" / "tiles.zarr"
    command = started(
        "tile",
        cohort / "recipe.yaml",
        "--scheduler",
        two_worker_processes.scheduler_address,
        "--set",
        f"output={tmp_path / 'out'}",
    )
    until(lambda: len(slide_ids(root)) >= 2)
    victim = two_worker_processes.workers[0].pid
    psutil.Process(victim).kill()
    output, _ = command.communicate(timeout=300)
    assert command.returncode == 0, output
    assert digest(root) == digest(cohort / "out" / "tiles.zarr")
    table = (tmp_path / "out" / "slides.csv").read_text()
    assert table.count(",ok,") == SLIDES


def test_a_remote_scheduler_gives_the_same_bits(cohort, tmp_path):
    address_file = tmp_path / "scheduler.json"
    here = ["--host", "127.0.0.1", "--scheduler-file", str(address_file), "--no-dashboard"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    quiet = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen([sys.executable, "-m", "dask", "scheduler", "--port", "0", *here], **quiet)]
    try:
        until(address_file.exists)
        worker = [sys.executable, "-m", "dask", "worker", "--nthreads", "2", "--memory-limit", "4GB", *here]
        processes.append(subprocess.Popen(worker, **quiet))
        address = until(lambda: json.loads(address_file.read_text())["address"])
        recipe = recipe_of(cohort, compute__scheduler=address, output=str(tmp_path / "out"))
        run = run_stage(recipe, "tile")
        assert run.states.count("ok") == SLIDES
        assert digest(tmp_path / "out" / "tiles.zarr") == digest(cohort / "out" / "tiles.zarr")
    finally:
        for process in reversed(processes):
            beneath = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(timeout=60)
            psutil.wait_procs(beneath, timeout=20)
            assert not any(child.is_running() for child in beneath)


def test_a_scheduler_that_dies_is_one_message(tmp_path):
    os.mkfifo(tmp_path / "hangs.tif")
    write_cohort(tmp_path, [*write_good(tmp_path, 1), "hangs.tif"])
    address_file = tmp_path / "scheduler.json"
    here = ["--host", "127.0.0.1", "--scheduler-file", str(address_file), "--no-dashboard"]
    quiet = {
        "cwd": tmp_path,
        "env": os.environ | {"PYTHONPATH": str(ROOT)},
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    scheduler = subprocess.Popen([sys.executable, "-m", "dask", "scheduler", "--port", "0", *here], **quiet)
    until(address_file.exists)
    worker = subprocess.Popen([sys.executable, "-m", "dask", "worker", "--nthreads", "1", "--no-nanny", *here], **quiet)
    address = until(lambda: json.loads(address_file.read_text())["address"])
    command = started("tile", tmp_path / "recipe.yaml", "--scheduler", address)
    try:
        until(lambda: slide_ids(tmp_path / "out" / "tiles.zarr") == ["good_00"])
        scheduler.kill()
        output, _ = command.communicate(timeout=300)
        assert command.returncode == 2, output
        assert "the Dask scheduler is gone" in " ".join(output.split())  # Dask logs its own trouble around it
    finally:
        for process in (scheduler, worker, command):
            process.kill()
            process.wait()


def test_a_loss_in_any_call_to_the_scheduler_is_that_message(two_worker_processes):
    pool = open_pool(two_worker_processes.scheduler_address, None, LIMITS)
    with pytest.raises(ClusterError, match="the Dask scheduler is gone"), pool:
        raise CommClosedError("as in Client.submit")


def test_an_address_where_nobody_answers_is_one_message(cohort, monkeypatch):
    monkeypatch.setattr("wsi_ips.cluster.dask_pool.CONNECT_TIMEOUT_S", 1)
    said = pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9.*dask scheduler")
    with said, open_pool("tcp://127.0.0.1:9", None, LIMITS):
        pass


WITHOUT_DASK = """
import sys
sys.modules["dask"] = sys.modules["distributed"] = None
from tests.faults.slides import recipe_of
from pathlib import Path
from wsi_ips.errors import ClusterError
from wsi_ips.pipeline import run_stage
folder, out = Path(sys.argv[1]), sys.argv[2]
print(run_stage(recipe_of(folder, output=out), "tile").states.count("ok"))
try:
    run_stage(recipe_of(folder, output=out + "2", compute__scheduler="tcp://127.0.0.1:9"), "tile")
except ClusterError as error:
    print(error)
"""


def test_dask_is_optional_and_a_scheduler_names_the_extra(cohort, tmp_path):
    command = [sys.executable, "-c", WITHOUT_DASK, str(cohort), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    count, message = done.stdout.splitlines()
    assert int(count) == SLIDES
    assert "pip install 'wsi-ips[cluster]'" in message


def test_workers_fit_into_memory():
    workers, share_gb = local_workers(None, None)
    assert 1 <= workers <= (os.cpu_count() or 1)
    assert workers * share_gb * 1e9 < psutil.virtual_memory().total
    assert local_workers(None, 1e6) == (1, 1e6)
    assert local_workers(7, None)[0] == 7


def test_limits_of_the_machine_agree_with_psutil():
    assert 1 <= available_cores() <= len(psutil.Process().cpu_affinity())
    assert memory_bytes() <= psutil.virtual_memory().total
    assert resident_mb(os.getpid()) == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.1)
    assert resident_mb(2**30) == 0.0


def test_slurm_needs_a_number_of_jobs():
    with pytest.raises(RecipeError, match=r"compute\.workers"), open_pool("slurm", None, LIMITS):
        pass


SBATCH = """#!/bin/sh
# What SLURM would do on a node: run the script, somewhere else, later.
sh "$1" >>"$FAKE_SLURM/log" 2>&1 &
echo $! >>"$FAKE_SLURM/pids"
echo "Submitted batch job $!"
"""


def test_slurm_starts_its_workers_from_a_job_script(cohort, tmp_path, monkeypatch):
    """dask-jobqueue itself; only `sbatch` and `scancel` are ours, and run the script on this machine."""
    import dask

    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH)
    (tools / "scancel").write_text("#!/bin/sh\nkill $1 2>/dev/null; exit 0\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    job = {"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "4GB", "jobqueue.slurm.interface": "lo"}
    with dask.config.set(job):
        recipe = recipe_of(cohort, compute__scheduler="slurm", compute__workers=2, output=str(tmp_path / "out"))
        run = run_stage(recipe, "tile")
    assert run.states.count("ok") == SLIDES
    assert digest(tmp_path / "out" / "tiles.zarr") == digest(cohort / "out" / "tiles.zarr")
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    until(lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids))
