"""Who is told of each epoch: ``metrics.jsonl`` and TensorBoard always, MLflow on request.

A tracker is handed all epochs so far and brings its store to that; so a training that goes on writes no epoch twice,
and what could not be written is written with the next epoch. None of them can stop a training.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from wsi_ips.config import TrackingSection
from wsi_ips.errors import TrainingError
from wsi_ips.provenance import atomic_write_text
from wsi_ips.training.record import EpochRecord

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from tensorboardX.record_writer import RecordWriter

EVENTS_NAME = "events.out.tfevents.0.wsi-ips"
"""TensorBoard looks for ``tfevents``; its own names hold that of the machine."""

RUN_TAG = "wsi_ips.training"
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""With a server that does not answer; MLflow's own values would hold up each epoch for minutes."""


class Tracker(Protocol):
    """Keeps the figures of all epochs somewhere."""

    name: str

    def write(self, history: Sequence[EpochRecord]) -> None:
        """Bring what is kept to these epochs; may fail in any way, and is then called again with more."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class Tracking:
    """All trackers of a training; one that fails is told of once and tried again with the next epoch.

    Parameters
    ----------
    trackers
        Who is told.
    note
        Told of the first failure of each.
    """

    def __init__(self, trackers: Sequence[Tracker], note: Callable[[str], None]) -> None:
        self._trackers, self._note = trackers, note
        self._failed: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers:
            with suppress(Exception):  # what could be written is written
                tracker.close()

    def write(self, history: Sequence[EpochRecord]) -> None:
        """Tell all."""
        for tracker in self._trackers:
            try:
                tracker.write(history)
            except Exception as error:  # noqa: BLE001 - whatever it is, a training of days must not end by it
                if tracker.name not in self._failed:
                    self._failed.add(tracker.name)
                    self._note(
                        f"{tracker.name} cannot be written ({type(error).__name__}: {error}); training goes on, it is "
                        "tried again with each epoch and not told of again"
                    )


class MetricsFile:
    """A JSON object a line and epoch; the file is replaced whole."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = path.name, path

    def write(self, history: Sequence[EpochRecord]) -> None:
        """Write all epochs."""
        atomic_write_text(self._path, "".join(json.dumps(asdict(record)) + "\n" for record in history))

    def close(self) -> None:
        """Nothing is open."""


class TensorBoardFile:
    """One file of events in a folder, begun anew by each call of the program.

    Written record by record: the usual writer does it in a thread, which a full disk ends in silence.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = "TensorBoard", folder
        self._writer: RecordWriter | None = None
        self._done = 0

    def write(self, history: Sequence[EpochRecord]) -> None:
        """Add the epochs that are not there yet."""
        try:
            if self._writer is None:
                self._writer, self._done = self._begin(), 0
            for record in history[self._done :]:
                self._writer.write(_event(record, _time_of(record, history)))
                self._done += 1
            self._writer.flush()
        except BaseException:
            with suppress(OSError):
                self.close()  # what is half written is begun anew
            raise

    def close(self) -> None:
        """Close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _begin(self) -> RecordWriter:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        writer = RecordWriter(str(self._folder / EVENTS_NAME))
        writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        return writer


def _event(record: EpochRecord, when: float) -> bytes:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in flat_figures(record).items()]
    event = Event(wall_time=when, step=record.epoch, summary=Summary(value=values))
    return bytes(event.SerializeToString())


def _time_of(record: EpochRecord, history: Sequence[EpochRecord]) -> float:
    """When an epoch ended if the last one ends now and nothing was interrupted, s since 1970."""
    return time.time() - (history[-1].seconds - record.seconds)


class MlflowRun:
    """A run of an MLflow server or file, found again by the fingerprint of its training.

    Parameters
    ----------
    address
        Tracking address.
    experiment, run_name
        What the run is called and where it goes.
    training
        Fingerprint of the training.
    parameters
        Of the recipe, told once.
    """

    def __init__(
        self, address: str, *, experiment: str, run_name: str, training: str, parameters: Mapping[str, Any]
    ) -> None:
        self.name = f"MLflow ({address})"
        self._address, self._experiment, self._run_name = address, experiment, run_name
        self._training, self._parameters = training, parameters
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._last = 0

    def write(self, history: Sequence[EpochRecord]) -> None:
        """Log the epochs that are not there yet."""
        from mlflow.entities import Metric

        try:
            if self._client is None:
                self._client = self._connect()
            for record in history:
                if record.epoch > self._last:
                    metrics = [
                        Metric(name, value, round(1000 * _time_of(record, history)), record.epoch)
                        for name, value in flat_figures(record).items()
                    ]
                    self._client.log_batch(self._run_id, metrics)
                    self._last = record.epoch
        except BaseException:
            self._client = None
            raise

    def close(self) -> None:
        """Say that the training is over, or was stopped."""
        if self._client is not None:
            self._client.set_terminated(self._run_id)

    def _connect(self) -> MlflowClient:
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        client = MlflowClient(self._address)
        known = client.get_experiment_by_name(self._experiment)
        experiment = known.experiment_id if known else client.create_experiment(self._experiment)
        found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{self._training}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            told = client.get_metric_history(self._run_id, "train/loss")
            self._last = max((metric.step for metric in told), default=0)
            return client
        run = client.create_run(experiment, tags={RUN_TAG: self._training}, run_name=self._run_name)
        self._run_id, self._last = run.info.run_id, 0
        client.log_batch(self._run_id, params=[Param(k, str(v)[:500]) for k, v in self._parameters.items()])
        return client


def mlflow_run(
    section: TrackingSection, *, name: str, folder: Path, training: str, parameters: Mapping[str, Any]
) -> MlflowRun | None:
    """The MLflow run a recipe asks for, None where it asks for none.

    Parameters
    ----------
    section
        Section ``tracking``.
    name
        Of the recipe.
    folder
        Run folder, for ``mlflow: local``.
    training
        Fingerprint of the training.
    parameters
        Of the recipe.

    Raises
    ------
    TrainingError
        MLflow is not installed.
    """
    if section.mlflow is None:
        return None
    try:
        import mlflow.tracking  # noqa: F401
    except ImportError as error:
        raise TrainingError(
            f"`tracking.mlflow: {section.mlflow}` needs MLflow ({error}); install it with pip install "
            "'wsi-ips[mlflow]', or leave the key out"
        ) from error
    address = f"sqlite:///{folder.absolute() / 'mlflow.db'}" if section.mlflow == "local" else section.mlflow
    experiment = section.experiment or name
    return MlflowRun(address, experiment=experiment, run_name=name, training=training, parameters=parameters)


def flat_figures(record: EpochRecord) -> dict[str, float]:
    """Figures that are there, by name: ``train/...``, ``val/...``, ``cost/...``."""
    figures = asdict(record)
    cost = figures.pop("cost") | {"seconds": figures.pop("seconds")}
    del figures["epoch"]
    named = {
        f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}": value
        for name, value in figures.items()
    } | {f"cost/{name}": value for name, value in cost.items()}
    return {name: float(value) for name, value in named.items() if value is not None}
