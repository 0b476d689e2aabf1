"""Every epoch is told once, whoever was stopped when; a tracker that fails stops nothing and catches up."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from tests.training.test_options import record
from wsi_ips.errors import TrainingError
from wsi_ips.training.tracking import (
    MetricsFile,
    MlflowRun,
    TensorBoard,
    Tracking,
    flat_figures,
    mlflow,
    tensorboard,
)

HISTORY = [record(1), record(2, 0.5, 0.75), record(3, 0.4), record(4, 0.3, 1.0)]


def read_events(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Step and figures of what TensorBoard shows of a folder: a new session drops earlier steps from its own on."""
    shown: dict[int, dict[str, float]] = {}
    for path in sorted(folder.iterdir()):
        for event in records_of(path):
            if event.HasField("session_log"):
                shown = {step: figures for step, figures in shown.items() if step < event.step}
            for value in event.summary.value:
                figures = shown.setdefault(event.step, {})
                assert value.tag not in figures
                figures[value.tag] = value.simple_value
    return sorted(shown.items())


def records_of(path: Path) -> list[Event]:
    """The records of an event file, checksums checked; the first says the version. The last one may be torn."""
    data, events = path.read_bytes(), []
    while len(data) >= 12 and len(data) >= 16 + struct.unpack("<Q", data[:8])[0]:
        (length,), (of_length,) = struct.unpack("<Q", data[:8]), struct.unpack("<I", data[8:12])
        body, (of_body,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
        assert (of_length, of_body) == (masked_crc32c(data[:8]), masked_crc32c(body))
        events.append(Event.FromString(body))
        data = data[16 + length :]
    assert not events or events[0].file_version == "brain.Event:2"
    return events


def test_each_epoch_once_also_where_epochs_are_done_again(tmp_path):
    for call in range(2):  # the second call begins before the end of the first: epochs 2 and 3 are done again
        trackers = [MetricsFile(tmp_path / "metrics.jsonl"), TensorBoard(tmp_path / "tb")]
        tracking = Tracking(trackers, pytest.fail)
        with tracking:
            for count in range(call, len(HISTORY) - 1 + call):
                tracking.write(HISTORY[: count + 1])
        (path,) = (tmp_path / "tb").glob("events*")
        path.rename(path.with_name(f"{call}-{path.name}"))  # names differ by the second only
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    events = read_events(tmp_path / "tb")
    assert [step for step, _ in events] == [1, 2, 3, 4]
    assert events[1][1]["val/auc"] == 0.75
    assert "val/auc" not in events[2][1]
    assert len(list((tmp_path / "tb").iterdir())) == 2


def test_names_say_where_a_figure_is_from():
    assert flat_figures(HISTORY[1]).keys() == {
        *("train/loss", "train/accuracy", "train/learning_rate", "train/gradient_norm", "train/gradient_norm_max"),
        *("train/attention_entropy", "val/loss", "val/auc", "cost/seconds", "cost/peak_rss_mb"),
        *("cost/read_share", "cost/scan_share", "cost/gradient_share"),
    }


def test_a_tracker_that_fails_is_told_of_once_and_catches_up(tmp_path):
    """A file lies where TensorBoard's folder should be, a folder where the metrics should be."""
    (tmp_path / "tb").write_text("in the way")
    (tmp_path / "metrics.jsonl").mkdir()
    notes: list[str] = []
    tracking = Tracking([MetricsFile(tmp_path / "metrics.jsonl"), TensorBoard(tmp_path / "tb")], notes.append)
    tracking.write(HISTORY[:1])
    tracking.write(HISTORY[:2])
    assert len(notes) == 2
    assert notes[0].startswith("metrics.jsonl cannot be written (IsADirectoryError")
    assert notes[1].startswith("TensorBoard cannot be written (FileExistsError")
    (tmp_path / "tb").unlink()
    (tmp_path / "metrics.jsonl").rmdir()
    with tracking:
        tracking.write(HISTORY[:3])
    assert len(notes) == 2
    assert [step for step, _ in read_events(tmp_path / "tb")] == [1, 2, 3]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


FULL_DISK = """
import shutil, sys
from pathlib import Path
from tensorboardX import record_writer
from tests.training.test_tracking import HISTORY, TensorBoard, Tracking
folder, notes, open_file = Path(sys.argv[1]), [], record_writer.open_file
tracking = Tracking([TensorBoard(folder)], notes.append)
record_writer.open_file = lambda _: Path("/dev/full").open("wb")
for count in range(1, 4):
    tracking.write(HISTORY[:count])
record_writer.open_file = open_file
print(len(notes), "No space left" in notes[0])
shutil.rmtree(folder)
with tracking:
    tracking.write(HISTORY)
"""


def test_a_disk_that_fills_up_stops_nothing(tmp_path):
    """`/dev/full` takes nothing: every write fails as on a full disk, also in the thread of tensorboardX.

    A process of its own, because that thread may fail again at any later time.
    """
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "tb")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == ["1", "True"], done.stderr
    assert [step for step, _ in read_events(tmp_path / "tb")] == [1, 2, 3, 4]


def mlflow_tracker(address: str, training: str = "abc") -> MlflowRun:
    return MlflowRun(address, experiment="cohort", training=training, parameters={"training.epochs": 4})


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of libraries newer than itself
def test_mlflow_keeps_each_epoch_once_in_sqlite(tmp_path):
    tracking = pytest.importorskip("mlflow.tracking", reason="extra `mlflow`")
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    first = mlflow_tracker(address)
    first.write([])
    first.write(HISTORY[:2])
    first.close()
    mlflow_tracker(address).write(HISTORY)  # another call of the same training
    mlflow_tracker(address, training="other").write(HISTORY[:1])
    client = tracking.MlflowClient(address)
    runs = client.search_runs([client.get_experiment_by_name("cohort").experiment_id])
    assert len(runs) == 2
    run = next(r for r in runs if r.data.tags["wsi_ips.training"] == "abc")
    assert run.data.params == {"training.epochs": "4"}
    assert run.info.run_name == "cohort"
    steps = {n: [m.step for m in client.get_metric_history(run.info.run_id, n)] for n in ("train/loss", "val/auc")}
    assert steps == {"train/loss": [1, 2, 3, 4], "val/auc": [2, 4]}


@pytest.mark.filterwarnings("ignore")
def test_an_mlflow_server_that_is_gone_costs_little_and_stops_nothing():
    pytest.importorskip("mlflow.tracking", reason="extra `mlflow`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    notes: list[str] = []
    tracking = Tracking([mlflow_tracker(address)], notes.append)
    began = time.monotonic()
    for count in (1, 2):
        tracking.write(HISTORY[:count])
    assert time.monotonic() - began < 60
    assert len(notes) == 1
    assert notes[0].startswith(f"MLflow ({address}) cannot be written")


def test_what_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    described = {"experiment": "run", "training": "abc", "parameters": {}}
    notes: list[str] = []
    assert mlflow(None, tmp_path, **described) == []
    assert [tracker.name for tracker in tensorboard(tmp_path, notes.append)] == ["TensorBoard"]
    assert notes == []
    monkeypatch.setattr("wsi_ips.training.tracking.find_spec", lambda _: None)
    with pytest.raises(TrainingError, match=r"`tracking.mlflow: local`.*pip install 'wsi-ips\[tracking\]'"):
        mlflow("local", tmp_path, **described)
    assert tensorboard(tmp_path, notes.append) == []
    assert len(notes) == 1
    assert "pip install 'wsi-ips[tracking]'" in notes[0]
