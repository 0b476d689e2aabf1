"""Several processes come to what one comes to; whatever goes wrong in one ends all, with words."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.training.in_processes import encoder_alone, fit, keep
from wsi_ips.cluster.machine import Launch
from wsi_ips.errors import RecipeError
from wsi_ips.training.processes import Processes, device_of

SCENARIOS = ("equal", "parts", "outlines", "resumed", "stopped", "unreadable", "unlike", "encoder")
STOPPED_AFTER = 5


def start(folder: Path, *scenarios: str, size: int = 2) -> list[subprocess.Popen[str]]:
    """Processes that find each other, as ``torchrun`` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.in_processes", str(folder), *scenarios],
            env=os.environ | where | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def ends(processes: list[subprocess.Popen[str]], timeout: float = 600) -> list[tuple[int, str]]:
    """Exit code and words of each; nobody is left behind."""
    try:
        said = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, words) for process, words in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes came to; ``by-one`` is the state of a training that one began."""
    folder = tmp_path_factory.mktemp("processes")
    with pytest.raises(KeyboardInterrupt):
        fit(None, state=folder / "by-one", stop_after=STOPPED_AFTER - 1)
    for code, words in ends(start(folder, *SCENARIOS)):
        assert code == 0, words
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alone") / "one.safetensors"
    keep(path, *fit(None))
    return path


def assert_equal(path: Path, expected: Path) -> None:
    ours, theirs = load_file(path), load_file(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def assert_same_figures(path: Path, expected: Path) -> None:
    ours, theirs = (json.loads(p.with_suffix(".json").read_text()) for p in (path, expected))
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        for name in one.keys() - {"cost"}:
            expected_value = None if other[name] is None else pytest.approx(other[name], rel=1e-4)
            assert one[name] == expected_value, name


def test_two_processes_come_to_the_weights_and_figures_of_one(together, alone):
    """Dropout, random tiles, two tasks with an unknown answer, slides cut in two, an average of weights, validation."""
    assert_equal(together / "equal-0.safetensors", alone)
    assert_same_figures(together / "equal-0.safetensors", alone)


def test_all_processes_hold_the_very_same_weights_and_the_first_alone_tells(together):
    first, second = (load_file(together / f"equal-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert json.loads((together / "equal-1.json").read_text()) == []


def test_slides_a_part_at_a_time_are_shared_too(together, tmp_path):
    path = tmp_path / "one.safetensors"
    keep(path, *fit(None, in_parts=True))
    assert_equal(together / "parts-0.safetensors", path)


def test_known_tiles_of_outlines_are_shared_too(together, tmp_path):
    """Drawn in the start, and put in the place of others after it; slides a part at a time."""
    path = tmp_path / "one.safetensors"
    keep(path, *fit(None, in_parts=True, start="outlines"))
    assert_equal(together / "outlines-0.safetensors", path)
    assert_same_figures(together / "outlines-0.safetensors", path)


def test_two_processes_share_the_self_supervision_of_an_encoder(together):
    """Their encoders begin with other weights: those of the first count. AdamW's first steps are of size 0.001."""
    first, second = (load_file(together / f"encoder-{rank}.safetensors") for rank in range(2))
    for name, tensor in encoder_alone(None).items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def test_what_one_began_two_finish(together, alone):
    assert_equal(together / "resumed-0.safetensors", alone)
    assert_same_figures(together / "resumed-0.safetensors", alone)


def test_a_signal_to_one_stops_both_after_the_same_step_and_one_finishes(together, alone, tmp_path):
    for rank in range(2):
        assert (together / f"stopped-{rank}.said").read_text() == "stopped"
    with safe_open(together / "by-two", framework="pt") as file:
        assert json.loads(file.metadata()["counters"])["total"] == STOPPED_AFTER
    keep(tmp_path / "one.safetensors", *fit(None, state=together / "by-two"))
    assert_equal(tmp_path / "one.safetensors", alone)
    assert_same_figures(tmp_path / "one.safetensors", alone)


def test_a_slide_that_one_cannot_read_ends_both_with_the_same_error(together):
    said = [json.loads((together / f"unreadable-{rank}.said").read_text()) for rank in range(2)]
    assert said == [{"type": "RegionReadError", "slide_id": "s2", "told": told} for told in (False, True)]


def test_processes_that_see_different_things_say_so(together):
    for rank in range(2):
        assert "process 1 of 2 has another plan than the first" in (together / f"unlike-{rank}.said").read_text()


def test_a_process_that_is_killed_ends_the_other_with_words(tmp_path):
    (code, words), (killed, _) = ends(start(tmp_path, "killed"), timeout=120)
    assert killed == -9
    assert code == 1
    assert "process 0 of 2 lost the others" in words
    assert "the same command resumes from there" in words


def test_a_process_without_a_gpu_of_its_own_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of(Launch(3, 4, 1, together=True), "auto") == torch.device("cuda", 1)
    assert device_of(Launch(), "cuda:1") == torch.device("cuda", 1)
    with pytest.raises(RecipeError, match="--nproc-per-node"):
        device_of(Launch(2, 3, 2, together=True), "cuda")
    with pytest.raises(RecipeError, match=r"compute\.device"):
        device_of(Launch(1, 2, 1, together=True), "cuda:1")


def test_alone_nothing_is_sent_and_errors_come_as_they_are():
    processes = Processes(torch.device("cpu"))
    assert processes.gather(3) == [3]
    assert processes.from_first("x") == "x"
    with pytest.raises(ZeroDivisionError):
        processes.attempt(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), processes.ahead():
        _ = 1 / 0


def test_without_all_variables_of_torchrun_a_process_is_alone():
    everything = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_RANK": "0"}
    assert Launch.of(everything) == Launch(1, 2, 0, together=True)
    assert Launch.of({"RANK": "1", "WORLD_SIZE": "2"}) == Launch()
