"""`torchrun -m wsi_ips train` on real files: killed, stopped by SLURM, resumed; the model is that of one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline.test_run import write_recipe
from wsi_ips.config import load_recipe
from wsi_ips.pipeline.stages import run_until

TRAINING = {"epochs": 8, "start_steps": 2, "batch_slides": 2}
SCRIPT = Path(__file__).parents[2] / "pipelines" / "train.sbatch"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, its slides and tiles; in `alone` the run folder of a training by one process."""
    folder = tmp_path_factory.mktemp("together")
    run_until(load_recipe(write_recipe(folder, training=TRAINING)), "train")
    shutil.copytree(folder / "out", folder / "alone")
    shutil.rmtree(folder / "out" / "model")
    return folder


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the commands of SLURM, one machine; `requeued` is there when a job was queued again."""
    folder = tmp_path_factory.mktemp("slurm")
    commands = {
        "srun": f'echo $$ >{folder}/step; shift; exec "$@"',
        "torchrun": f'exec {" ".join(TORCHRUN)} "$@"',
        "scontrol": f'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$2" >{folder}/requeued; fi',
        "scancel": f'kill -s "${{1#--signal=}}" "$(cat {folder}/step)"',
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def start(command: list[str], folder: Path, **variables: str) -> subprocess.Popen[bytes]:
    """A command whose words go to `said`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])} | variables
    with (folder / "said").open("wb") as said:
        return subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment, cwd=folder)


def wait_until(process: subprocess.Popen[bytes], folder: Path, holds: Callable[[], bool]) -> None:
    while process.poll() is None and not holds():
        time.sleep(0.02)
    assert process.poll() is None, (folder / "said").read_text()


def ends(process: subprocess.Popen[bytes]) -> int:
    """Exit code; nothing it started is left behind."""
    started = psutil.Process(process.pid).children(recursive=True)
    try:
        return process.wait(timeout=300)
    finally:
        for some in started:
            if some.is_running():
                some.kill()
        process.kill()


def epochs_done(folder: Path) -> int:
    path = folder / "out" / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def workers(process: subprocess.Popen[bytes]) -> dict[int, psutil.Process]:
    """By rank."""
    return {
        int(some.environ()["RANK"]): some
        for some in psutil.Process(process.pid).children()
        if "RANK" in some.environ() and "train" in some.cmdline()
    }


def test_killed_then_stopped_by_slurm_then_finished_by_one_it_is_the_model_of_one_process(cohort, slurm):
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "wsi_ips", "train", str(cohort / "recipe.yaml")]
    (cohort / "out" / "metrics.jsonl").unlink()
    process = start(command, cohort, PYTHONUNBUFFERED="1")
    wait_until(process, cohort, lambda: epochs_done(cohort) >= 3)
    workers(process)[1].kill()
    assert ends(process) == 1
    said = (cohort / "said").read_text()
    assert "process 0 of 2 lost the others" in said, said
    assert not (cohort / "out" / "model" / "model.json").exists()

    variables = {
        "PATH": f"{slurm}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
    }
    (cohort / "out" / "metrics.jsonl").unlink()
    process = start(["bash", str(SCRIPT), str(cohort / "recipe.yaml")], cohort, **variables)
    wait_until(process, cohort, lambda: epochs_done(cohort) >= 3)
    process.send_signal(signal.SIGUSR1)
    code = ends(process)
    said = (cohort / "said").read_text()
    assert code == 0, said
    assert (slurm / "requeued").read_text() == "7\n", said
    assert said.count("the same command resumes from here") == 1, said
    assert (cohort / "out" / "training" / "state.safetensors").exists()

    run_until(load_recipe(cohort / "recipe.yaml"), "train")
    ours, theirs = (load_file(cohort / name / "model" / "model.safetensors") for name in ("out", "alone"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():  # Adam makes whole steps of rounding in tiny gradients: 1.6e-5 was seen
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)
    lines = [json.loads(line) for line in (cohort / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 9))


def test_an_error_of_the_recipe_is_told_once(cohort):
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "wsi_ips", "train", str(cohort / "recipe.yaml")]
    process = start([*command, "--set", "training.patience=1", "--set", "training.select=auc"], cohort)
    assert ends(process) == 1
    said = (cohort / "said").read_text()
    assert said.count("needs validation slides") == 1, said


def test_other_commands_are_those_of_the_first_process_alone(cohort):
    process = start([*TORCHRUN, "--nproc-per-node", "2", "-m", "wsi_ips", "check", "--encoders"], cohort)
    assert ends(process) == 0
    assert (cohort / "said").read_text().count("h-optimus-0") == 1
