"""Figures of each epoch: summed while it runs, recorded when it is done, and where the records go.

Sums are part of the stored state, so a training that was stopped within an epoch reports the same figures. Records go
to ``metrics.jsonl``, to TensorBoard where it is installed, and to MLflow on request. A tracker receives all epochs so
far and stores those that are missing. So a resumed training writes no epoch twice, and what could not be written is
written with the next epoch. No tracker can stop a training.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.errors import TrainingError
from wsi_ips.provenance import atomic_write_text, peak_rss_mb

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from tensorboardX.event_file_writer import EventsWriter

TILES_COMPARED = 256  # best tiles of a slide that are remembered until its next visit
RUN_TAG = "wsi_ips.training"
# For a server that does not answer; MLflow's own values would delay each epoch by minutes.
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


@dataclass(frozen=True)
class Cost:
    """Cost of an epoch on this machine; the only figures that differ when a training is repeated."""

    tiles_per_s: float | None  # read and scored per second of the scan; None in a start phase without a scan
    read_share: float  # of the time in steps: waiting for pixels
    scan_share: float  # scoring tiles
    gradient_share: float  # learning from those kept
    peak_rss_mb: float  # largest resident memory of the process so far
    peak_gpu_mb: float | None  # largest memory of tensors on the GPU so far; None without a GPU


@dataclass(frozen=True)
class EpochRecord:
    """Figures of one epoch."""

    epoch: int  # counted from 1
    loss: float  # mean training loss of the slides
    accuracy: float  # share of correct answers on the training slides, dropout on, mean over tasks
    val_loss: float | None  # mean over validation slides and tasks; None without any and in the start phase
    val_auc: float | None  # mean over classes and tasks; None also where validation slides are of one class
    learning_rate: float  # at the end of the epoch
    gradient_norm: float | None  # before clipping, mean of the steps
    gradient_norm_max: float | None  # the largest of the steps
    attention_entropy: float | None  # over a slide's kept tiles, 0 (all on one) to 1 (even), mean over slides
    selection_overlap: float | None  # share of a slide's best tiles that were among them at its last visit, mean
    seconds: float  # spent on the training so far, in all calls
    cost: Cost
    # Share of a slide's best tiles (as many as kept, at most 256) that lie inside outlines; mean over slides with some
    kept_in_outlines: float | None = None
    guess_loss: float | None = None  # training loss of always answering with the frequencies of the classes
    selection_done: float | None = None  # share of the training's steps with selection; None in the start phase

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Build a record from the result of ``dataclasses.asdict``."""
        return cls(**(dict(stored) | {"cost": Cost(**stored["cost"])}))


class Meter:
    """Sums of the running epoch; ``sums`` has (sum of values, their number, the largest) by name."""

    def __init__(self, sums: dict[str, list[float]] | None = None) -> None:
        self.sums = {} if sums is None else sums

    def add(self, name: str, value: float) -> None:
        """Add a value."""
        total, count, largest = self.sums.get(name, [0.0, 0.0, value])
        self.sums[name] = [total + value, count + 1, max(largest, value)]

    def mean(self, name: str) -> float | None:
        """Return the mean; None where nothing was added."""
        return self.sums[name][0] / self.sums[name][1] if name in self.sums else None

    def largest(self, name: str) -> float | None:
        """Return the largest value; None where nothing was added."""
        return self.sums[name][2] if name in self.sums else None

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the seconds of a ``with`` block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def cost(self, device: torch.device) -> Cost:
        """Return the cost, from the clocks ``step``, ``scan``, ``scan_read`` (within it), ``read`` and ``gradient``."""
        names = ("step", "scan", "scan_read", "read", "gradient", "tiles")
        step, scan, within, read, gradient, tiles = (self.sums.get(name, [0.0])[0] for name in names)
        whole = max(step, 1e-9)
        return Cost(
            tiles_per_s=round(tiles / scan, 1) if scan else None,
            read_share=round((within + read) / whole, 4),
            scan_share=round((scan - within) / whole, 4),
            gradient_share=round(gradient / whole, 4),
            peak_rss_mb=round(peak_rss_mb(), 1),
            peak_gpu_mb=round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if device.type == "cuda" else None,
        )


class LastSelection:
    """The best tiles of every training slide at its last visit; ``memory_size`` is the number kept per slide (M)."""

    def __init__(self, memory_size: int) -> None:
        self._width = min(memory_size, TILES_COMPARED)
        self._tiles: dict[str, NDArray[np.int32]] = {}

    def overlap(self, slide_id: str, best: NDArray[np.integer]) -> float | None:
        """Remember a slide's best tiles; return the share that was among them last time, None the first time."""
        now, before = best[: self._width].astype(np.int32), self._tiles.get(slide_id)
        self._tiles[slide_id] = now
        return None if before is None else float(np.isin(now, before).mean())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state to store."""
        return {slide_id: torch.from_numpy(tiles) for slide_id, tiles in self._tiles.items()}

    def load_state_dict(self, stored: Mapping[str, Tensor]) -> None:
        """Restore the stored state."""
        self._tiles = {slide_id: tiles.numpy() for slide_id, tiles in stored.items()}


def attention_entropy(weights: Tensor, mask: Tensor) -> Tensor:  # (B, K, T), (B, K) -> (B,)
    """Return the entropy of attention over its largest possible value, mean over queries; NaN for a single tile."""
    entropy: Tensor = torch.special.entr(weights.double()).sum(1).mean(1)  # (B,)
    return entropy / mask.sum(1).double().log()


class Tracker(Protocol):
    """Stores the figures of all epochs somewhere."""

    name: str

    def write(self, history: Sequence[EpochRecord]) -> None:
        """Store these epochs; may raise any error, and is then called again with more epochs."""
        ...

    def close(self) -> None:
        """Close open files and connections."""
        return


class Tracking:
    """All trackers of a training, in a ``with`` block. ``note`` is called with the first failure of each."""

    def __init__(self, trackers: Sequence[Tracker], note: Callable[[str], None]) -> None:
        self._trackers, self.note = trackers, note
        self._failed: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers:
            with suppress(Exception):  # what could be written is written
                tracker.close()

    def write(self, history: Sequence[EpochRecord]) -> None:
        """Send the epochs so far to all trackers."""
        for tracker in self._trackers:
            try:
                tracker.write(history)
            except Exception as error:  # noqa: BLE001 - no failure of a tracker may end a training of days
                if tracker.name not in self._failed:
                    self._failed.add(tracker.name)
                    self.note(
                        f"{tracker.name} cannot be written ({type(error).__name__}: {error}); training continues, "
                        "each epoch tries again without another message"
                    )


class MetricsFile(Tracker):
    """One JSON object per line and epoch; the file is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = path.name, path

    def write(self, history: Sequence[EpochRecord]) -> None:
        """Write all epochs."""
        atomic_write_text(self._path, "".join(json.dumps(asdict(record)) + "\n" for record in history))


class TensorBoard(Tracker):
    """Event files in a folder. Each call of the program writes all epochs and makes TensorBoard drop earlier ones.

    tensorboardX's `SummaryWriter` writes in a thread of its own, which prints a traceback where the disk is full and
    ends; its `EventsWriter` writes at once and raises here.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self._folder, self._done = folder, 0
        self._writer: EventsWriter | None = None

    def write(self, history: Sequence[EpochRecord]) -> None:
        """Add the epochs that are missing."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        try:
            if self._writer is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._writer, self._done = EventsWriter(str(self._folder / "events")), 0
                restart = SessionLog(status=SessionLog.START)  # drops the steps of earlier files from this one on
                self._writer.write_event(Event(wall_time=time.time(), step=1, session_log=restart))
            for record in history[self._done :]:
                for name, value in flat_figures(record).items():
                    when, summary = _time_of(record, history), scalar(name, value)
                    self._writer.write_event(Event(wall_time=when, step=record.epoch, summary=summary))
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


class MlflowRun(Tracker):
    """A run on an MLflow server or in an MLflow file; a resumed training finds it by its fingerprint (``training``).

    ``experiment`` names the experiment and the run; ``parameters`` are keys of the recipe, stored once.
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
    """Return the tracker that ``tracking.mlflow`` asks for; ``folder`` is the run folder, for ``mlflow: local``."""
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
