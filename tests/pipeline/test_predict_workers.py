"""Prediction by several processes: the same bits as by one, and whoever dies takes one slide with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.faults.slides import ROOT, recipe_of, write_cohort, write_good
from tests.faults.test_faults import job_processes, until
from tests.pipeline.bundles import write_bundle
from tests.pyramids import textured_pyramid, write_pyramid
from wsi_ips.cluster.process import NUMBER
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.pipeline import Run, run_stage
from wsi_ips.pipeline.predict_stage import own_device
from wsi_ips.pipeline.stages import predict

SLIDES = 4
ARRAYS = ("attention_logits", "tile_probability", "kept", "kept_embeddings")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predicted by this process, with all of its threads, into ``out``."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, write_good(folder, SLIDES), workers=0)
    write_bundle(folder / "bundle")
    run = run_stage(recipe_of(folder, predict__checkpoint="bundle"), "predict")
    assert run.states.count("ok") == SLIDES
    return folder


def require_the_same_bits(first: Path, second: Path) -> None:
    for number in range(SLIDES):
        one, other = (read_scores(root / "scores.zarr", f"good_{number:02d}") for root in (first, second))
        assert one.fingerprint == other.fingerprint
        assert one.probabilities == other.probabilities
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_two_processes_give_the_same_bits(cohort, tmp_path):
    out = tmp_path / "out"
    changes = {"predict__checkpoint": "bundle", "output": str(out), "compute__predict_workers": 2}
    run = run_stage(recipe_of(cohort, **changes), "predict")
    assert {row.stage for row in run.states} == {"predict"}
    assert all(row.rss_mb > 100 for row in run.states)  # of a process that holds a network
    require_the_same_bits(cohort / "out", out)
    before = {p: p.stat().st_mtime_ns for p in (out / "scores.zarr").rglob("*") if p.is_file()}
    run_stage(recipe_of(cohort, **changes), "predict")
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert job_processes() == []


def test_a_dask_scheduler_gives_the_same_bits(cohort, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
        protocol="tcp",
        host="127.0.0.1",
    ) as cluster:
        arguments = ["predict", cohort / "recipe.yaml", "--checkpoint", cohort / "bundle", "--output", tmp_path / "out"]
        command = [sys.executable, "-c", "from wsi_ips.cli import main; main()", *map(str, arguments)]
        done = subprocess.run(
            [*command, "--scheduler", cluster.scheduler_address],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    require_the_same_bits(cohort / "out", tmp_path / "out")


def test_a_process_that_is_killed_fails_its_slide_alone(cohort, tmp_path):
    """The slide's file is replaced by a pipe after it was tiled: reading it waits for ever, and we kill who waits."""
    folder = tmp_path / "copy"
    folder.mkdir()
    write_cohort(folder, write_good(folder, SLIDES), workers=0)
    changes = {"predict__checkpoint": str(cohort / "bundle")}
    run_stage(recipe_of(folder), "tile")
    victim = folder / "good_00.tif"

    def predict_all() -> None:
        two = {"compute__predict_workers": 2, "compute__workers": 2}
        with Run.open(recipe_of(folder, **changes, **two)) as run:
            predict(run)

    held = victim.read_bytes()
    victim.unlink()
    os.mkfifo(victim)
    thread = threading.Thread(target=predict_all)
    thread.start()
    killed = set()
    try:
        until(lambda: len(list((folder / "out" / "scores.zarr").glob("good_*"))) == SLIDES - 1)
        while thread.is_alive():  # only this slide is left, so whoever there is has it or has nothing to do
            for process in job_processes():
                process.kill()
                killed.add(process.pid)
            time.sleep(0.2)
    finally:
        thread.join(timeout=120)
        victim.unlink()
        victim.write_bytes(held)
    states = {row.slide_id: row for row in Run.open(recipe_of(folder)).states}
    assert len(killed) >= 2
    assert states["good_00"].state == "failed"
    assert states["good_00"].stage == "predict"
    assert "slide good_00: its process was killed (SIGKILL)" in states["good_00"].reason
    assert "(2 attempts)" in states["good_00"].reason
    assert {row.state for name, row in states.items() if name != "good_00"} == {"ok"}
    run = run_stage(recipe_of(folder, **changes), "predict")
    assert run.states.count("ok") == SLIDES
    require_the_same_bits(cohort / "out", folder / "out")


def test_a_process_takes_the_gpu_of_its_number(monkeypatch):
    assert own_device("cpu") == torch.device("cpu")
    assert own_device("cuda:1") == torch.device("cuda:1")
    if torch.cuda.is_available():
        monkeypatch.setenv(NUMBER, "3")
        assert own_device("auto") == torch.device("cuda", 3 % torch.cuda.device_count())


def test_a_slide_that_changed_after_it_was_tiled_is_not_predicted(cohort, tmp_path):
    """Its stored tiles are those of other pixels; no other slide suffers."""
    write_cohort(tmp_path, write_good(tmp_path, SLIDES), workers=0)
    run_stage(recipe_of(tmp_path), "tile")
    write_pyramid(tmp_path / "good_00.tif", textured_pyramid(77))
    with Run.open(recipe_of(tmp_path, predict__checkpoint=str(cohort / "bundle"))) as run:
        predict(run)
    assert run.states["good_00"].state == "failed"
    assert "its file changed while it was read, or after it was tiled" in run.states["good_00"].reason
    assert not (tmp_path / "out" / "scores.zarr" / "good_00").exists()
    assert run.states.count("ok") == SLIDES - 1
