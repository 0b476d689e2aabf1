"""What a bundle says of its probabilities: a temperature and thresholds per task, frozen on validation slides.

It lies beside the card in a file of its own, ``calibration.json``, for it is made after the training and changes no
stored score. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from wsi_ips.errors import CheckpointError
from wsi_ips.labels import Task
from wsi_ips.provenance import atomic_write_json, fingerprint

SCHEMA_VERSION = 1
CALIBRATION_NAME = "calibration.json"
DEFAULT_THRESHOLD = 0.5
DecisionName = Literal["pooled", "tiles"]
"""How a slide's probabilities come about: the network pools its kept tiles, or its tiles speak each for itself."""


@dataclass(frozen=True)
class TaskCalibration:
    """How the probabilities of one task are to be read.

    Attributes
    ----------
    task
        Its name.
    temperature
        T of ``softmax(log p / T)``; 1 leaves probabilities as they are.
    thresholds
        Calibrated probability from which on a class is called: of the last of two classes, or of each class where
        several may hold. Empty where one of more than two classes is called: the most probable one is.
    slides
        Validation slides behind it; 0 where it is the default.
    thresholds_from
        ``validation`` where any threshold was found on those slides.
    note
        Why something in it is the default; empty where nothing is.
    decision
        What temperature and thresholds are of: the network's probabilities, or those of
        :func:`wsi_ips.inference.decision.by_tiles`.
    """

    task: str
    temperature: float
    thresholds: tuple[float, ...]
    slides: int = 0
    note: str = ""
    thresholds_from: Literal["validation", "default"] = "default"
    decision: DecisionName = "pooled"

    @classmethod
    def default(cls, task: Task, note: str = "", decision: DecisionName = "pooled") -> TaskCalibration:
        """Temperature 1, thresholds 0.5."""
        thresholds = (DEFAULT_THRESHOLD,) * threshold_count(task)
        return cls(task.name, 1.0, thresholds, note=note, decision=decision)


@dataclass(frozen=True)
class Calibration:
    """Of all tasks of a checkpoint, in its order."""

    tasks: tuple[TaskCalibration, ...]

    @classmethod
    def default(cls, tasks: Sequence[Task], note: str = "") -> Calibration:
        """What holds where nothing was measured."""
        return cls(tuple(TaskCalibration.default(task, note) for task in tasks))

    @property
    def hash(self) -> str:
        """Fingerprint of what it does; notes and numbers of slides do not count."""
        by_tiles = [t.task for t in self.tasks if t.decision == "tiles"]
        return fingerprint("calibration", [[t.task, t.temperature, t.thresholds] for t in self.tasks], *by_tiles)


def threshold_count(task: Task) -> int:
    """Thresholds that a task has."""
    if task.kind == "multi":
        return task.width
    return 1 if task.width == 2 else 0


def read_calibration(folder: Path, tasks: Sequence[Task], checkpoint: str) -> Calibration:
    """The calibration of a checkpoint; the default with a note where it has none.

    Parameters
    ----------
    folder
        Of the checkpoint.
    tasks
        Of its card.
    checkpoint
        Its fingerprint.

    Raises
    ------
    CheckpointError
        Damaged, or of other weights.
    """
    path = folder / CALIBRATION_NAME
    advice = "delete it, and `wsi-ips evaluate` of the run that trained the model makes it anew"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Calibration.default(tasks, "the model has no calibration: temperature 1, threshold 0.5")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"calibration {path}: cannot be read ({error}); {advice}") from error
    try:
        if stored["schema_version"] != SCHEMA_VERSION:
            raise CheckpointError(f"calibration {path}: written by another version of wsi-ips; {advice}")
        if stored["checkpoint"] != checkpoint:
            raise CheckpointError(f"calibration {path}: made for other weights than those beside it; {advice}")
        found = Calibration(
            tuple(TaskCalibration(**{**entry, "thresholds": tuple(entry["thresholds"])}) for entry in stored["tasks"])
        )
        for task, entry in zip(tasks, found.tasks, strict=True):
            if entry.decision not in get_args(DecisionName):
                raise ValueError(f"task `{entry.task}` is decided by `{entry.decision}`")
            if task.name != entry.task or len(entry.thresholds) != threshold_count(task) or not entry.temperature > 0:
                raise ValueError(f"task `{entry.task}` does not fit the model's `{task.name}`")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"calibration {path}: damaged ({error}); {advice}") from error
    return found


def write_calibration(folder: Path, calibration: Calibration, checkpoint: str) -> None:
    """Write the calibration of the checkpoint with this fingerprint; it appears whole or not at all."""
    content = {"schema_version": SCHEMA_VERSION, "checkpoint": checkpoint, **asdict(calibration)}
    atomic_write_json(folder / CALIBRATION_NAME, content)
