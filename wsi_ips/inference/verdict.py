"""What is said of a slide: probabilities brought to what they mean, and the call. Numbers in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

from wsi_ips.evaluation.calibration import TaskCalibration, calibrated
from wsi_ips.labels import Task


@dataclass(frozen=True)
class Verdict:
    """What is said of a slide in one task.

    Attributes
    ----------
    raw, probability
        Of each class: as the network gave it, and calibrated.
    answer
        The call, as a manifest would have it.
    """

    raw: tuple[float, ...]
    probability: tuple[float, ...]
    answer: str


def verdict(task: Task, raw: tuple[float, ...], calibration: TaskCalibration) -> Verdict:
    """Calibrate the probabilities of one slide and call it."""
    probability = calibrated(task, raw, calibration.temperature)
    return Verdict(raw, probability, task.answer(probability, calibration.thresholds))
