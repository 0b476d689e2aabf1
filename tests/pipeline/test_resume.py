"""The command `train` killed with `kill -9` and started again: the same model, and never half of one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.test_run import write_recipe
from tests.training.test_tracking import read_events
from wsi_ips.config import load_recipe
from wsi_ips.pipeline.run import Silent
from wsi_ips.pipeline.stages import run_until

TRAINING = {"epochs": 5, "start_steps": 2, "batch_slides": 1, "weight_average": 0.9, "balance": "sampling"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, its slides and their tiles; in `undisturbed` the model of a training that nobody disturbed."""
    folder = tmp_path_factory.mktemp("resume")
    run_until(load_recipe(write_recipe(folder, training=TRAINING)), "train", Silent())
    shutil.copytree(folder / "out", folder / "undisturbed")
    shutil.rmtree(folder / "out" / "model")
    return folder


def start(folder: Path) -> subprocess.Popen[bytes]:
    """`wsi-ips train` in a process of its own that saves after every step; what it says goes to `said`.

    One thread, as these tests have: bits are promised for the same number of threads.
    """
    code = (
        "import sys, wsi_ips.training.resume as r; r.StateFile.__init__.__kwdefaults__['every_s'] = 0.0\n"
        "from wsi_ips.cli import main; sys.argv[0] = 'wsi-ips'; main()"
    )
    command = [sys.executable, "-c", code, "train", str(folder / "recipe.yaml")]
    with (folder / "said").open("wb") as said:
        return subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


def wait_for_state(process: subprocess.Popen[bytes], folder: Path, after_s: float) -> None:
    """Until this training has saved something, and then a little."""
    state = folder / "out" / "training" / "state.safetensors"
    seen = state.stat().st_mtime_ns if state.exists() else 0
    while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns != seen):
        time.sleep(0.01)
    time.sleep(after_s)


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_very_model(cohort):
    moments, killed = random.Random(3), 0
    for _ in range(2):
        process = start(cohort)
        wait_for_state(process, cohort, moments.uniform(0.0, 0.3))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            killed += 1
            assert not (cohort / "out" / "model" / "model.json").exists()  # half a training is no model
    assert killed
    assert start(cohort).wait(timeout=300) == 0, (cohort / "said").read_text()
    assert "training resumes in epoch" in (cohort / "said").read_text()
    ours, undisturbed = (cohort / name for name in ("out", "undisturbed"))
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (ours, undisturbed)]
    assert weights[0] == weights[1]
    figures = []
    for folder in (ours, undisturbed):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        figures.append([{k: v for k, v in line.items() if k not in ("seconds", "cost")} for line in lines])
    assert figures[0] == figures[1]
    assert not (ours / "training").exists()
    assert [step for step, _ in read_events(ours / "tensorboard")] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_polite_kill_saves_and_ends_with_130(cohort):
    write_recipe(cohort, training=TRAINING | {"learning_rate": 1e-4})
    process = start(cohort)
    wait_for_state(process, cohort, 0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 130, (cohort / "said").read_text()
    assert "the same command resumes from here" in (cohort / "said").read_text()
    assert (cohort / "out" / "training" / "state.safetensors").exists()
