"""What is said of a slide: probabilities brought to what they mean, and the call. Numbers in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi_ips.evaluation.calibration import with_temperature
from wsi_ips.labels import Task
from wsi_ips.model.calibration import TaskCalibration


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


def calibrated(task: Task, raw: tuple[float, ...], temperature: float) -> tuple[float, ...]:
    """Probabilities after temperature scaling: of all classes together, or of each where several may hold."""
    if temperature == 1:
        return raw  # to the bit
    values = np.array(raw, np.float64)  # (C,)
    if task.kind == "single":
        return tuple(with_temperature(values, temperature).tolist())
    return tuple(with_temperature(np.stack([1 - values, values], 1), temperature)[:, 1].tolist())
