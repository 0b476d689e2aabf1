"""Where the figures of each epoch go: ``metrics.jsonl``, TensorBoard where it is installed, MLflow on request.

A tracker receives all epochs so far and stores those that are missing. So a resumed training writes no epoch twice, and
what could not be written is written with the next epoch. No tracker can stop a training.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from wsi_ips.errors import TrainingError
from wsi_ips.provenance import atomic_write_text
from wsi_ips.training.epoch_records import EpochRecord

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from tensorboardX import SummaryWriter

RUN_TAG = "wsi_ips.training"
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""For a server that does not answer; MLflow's own values would delay each epoch by minutes."""
ENDLESS = 0
"""Length of TensorBoard's queue, 0 = no limit: its thread ends where the disk is full, and a full queue would block."""


class Tracker(Protocol):
    """Stores the figures of all epochs somewhere."""

    name: str

    def write(self, history: Sequence[EpochRecord]) -> None:
        """Store these epochs; may raise anything, and is then called again with more epochs."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class Tracking:
    """All trackers of a training, in a ``with`` block. ``note`` is called with the first failure of each."""

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
        """Give all trackers the epochs so far."""
        for tracker in self._trackers:
            try:
                tracker.write(history)
            except Exception as error:  # noqa: BLE001 - no failure of a tracker may end a training of days
                if tracker.name not in self._failed:
                    self._failed.add(tracker.name)
                    self._note(
                        f"{tracker.name} cannot be written ({type(error).__name__}: {error}); training continues, "
                        "each epoch tries again without another message"
                    )


class MetricsFile:
    """One JSON object per line and epoch; the file is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = path.name, path

    def write(self, history: Sequence[EpochRecord]) -> None:
        """Write all epochs."""
        atomic_write_text(self._path, "".join(json.dumps(asdict(record)) + "\n" for record in history))

    def close(self) -> None:
        """Do nothing: nothing is open."""


class TensorBoard:
    """Event files in a folder. Each call of the program writes all epochs and makes TensorBoard drop earlier ones."""

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self._folder, self._done = folder, 0
        self._writer: SummaryWriter | None = None

    def write(self, history: Sequence[EpochRecord]) -> None:
        """Add the epochs that are missing."""
        try:
            if self._writer is None:
                from tensorboardX import SummaryWriter

                self._folder.mkdir(parents=True, exist_ok=True)
                self._writer, self._done = SummaryWriter(str(self._folder), purge_step=1, max_queue=ENDLESS), 0
            for record in history[self._done :]:
                for name, value in flat_figures(record).items():
                    self._writer.add_scalar(name, value, record.epoch, _time_of(record, history))
                self._done += 1
            self._writer.flush()
        except BaseException:
            with suppress(OSError):
                self.close()  # the next epoch starts a new file
            raise

    def close(self) -> None:
        """Close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


class MlflowRun:
    """A run on an MLflow server or in an MLflow file; a resumed training finds it by its fingerprint.

    Parameters
    ----------
    address
        Tracking address.
    experiment
        Name of the experiment and of the run.
    training
        Fingerprint of the training.
    parameters
        Keys of the recipe, stored once.
    """

    def __init__(self, address: str, *, experiment: str, training: str, parameters: Mapping[str, Any]) -> None:
        self.name = f"MLflow ({address})"
        self._address, self._experiment = address, experiment
        self._training, self._parameters = training, parameters
        self._client: MlflowClient | None = None
        self._run_id, self._last = "", 0

    def write(self, history: Sequence[EpochRecord]) -> None:
        """Log the epochs that are missing."""
        from mlflow.entities import Metric

        try:
            self._client = self._client or self._connect()
            for record in history:
                if record.epoch > self._last:
                    when, figures = round(1000 * _time_of(record, history)), flat_figures(record)
                    metrics = [Metric(name, value, when, record.epoch) for name, value in figures.items()]
                    self._client.log_batch(self._run_id, metrics)
                    self._last = record.epoch
        except BaseException:
            self._client = None
            raise

    def close(self) -> None:
        """Mark the run as finished."""
        if self._client is not None:
            self._client.set_terminated(self._run_id)

    def _connect(self) -> MlflowClient:
        """Connect and find the run of this training, or create it."""
        for name, value in MLFLOW_PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        client = MlflowClient(self._address)
        known = client.get_experiment_by_name(self._experiment)
        experiment = known.experiment_id if known else client.create_experiment(self._experiment)
        found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{self._training}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            logged = client.get_metric_history(self._run_id, "train/loss")
            self._last = max((metric.step for metric in logged), default=0)
            return client
        run = client.create_run(experiment, tags={RUN_TAG: self._training}, run_name=self._experiment)
        self._run_id, self._last = run.info.run_id, 0
        client.log_batch(self._run_id, params=[Param(k, str(v)[:500]) for k, v in self._parameters.items()])
        return client


def tensorboard(folder: Path, note: Callable[[str], None]) -> list[Tracker]:
    """Return TensorBoard's tracker; none, with a note, where tensorboardX is not installed."""
    if find_spec("tensorboardX") is None:
        note("tensorboardX is not installed, so no TensorBoard files are written: pip install 'wsi-ips[tracking]'")
        return []
    return [TensorBoard(folder)]


def mlflow(key: str | None, folder: Path, **described: Any) -> list[Tracker]:
    """Return the tracker that ``tracking.mlflow`` asks for, none where it is empty.

    ``folder`` is the run folder, for ``mlflow: local``; the rest goes to :class:`MlflowRun`.

    Raises
    ------
    TrainingError
        MLflow is not installed.
    """
    if key is None:
        return []
    if find_spec("mlflow") is None:
        raise TrainingError(
            f"`tracking.mlflow: {key}` needs MLflow; install it with pip install 'wsi-ips[tracking]', or leave the key "
            "out"
        )
    return [MlflowRun(f"sqlite:///{folder.absolute() / 'mlflow.db'}" if key == "local" else key, **described)]


def flat_figures(record: EpochRecord) -> dict[str, float]:
    """Return the known figures by name: ``train/...``, ``val/...``, ``cost/...``."""
    figures = asdict(record)
    cost = figures.pop("cost") | {"seconds": figures.pop("seconds")}
    del figures["epoch"]
    named = {
        f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}": value
        for name, value in figures.items()
    } | {f"cost/{name}": value for name, value in cost.items()}
    return {name: float(value) for name, value in named.items() if value is not None}


def _time_of(record: EpochRecord, history: Sequence[EpochRecord]) -> float:
    """Return when an epoch ended, s since 1970, if the last one ends now and nothing was interrupted."""
    return time.time() - (history[-1].seconds - record.seconds)
