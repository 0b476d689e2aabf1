"""Calibrated probabilities of a slide and its predicted classes. Numbers in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi_ips.evaluation.calibration import with_temperature
from wsi_ips.labels import Task
from wsi_ips.model.calibration import TaskCalibration


@dataclass(frozen=True)
class Verdict:
    """Prediction of one task for a slide.

    Attributes
    ----------
    raw, probability
        Probabilities of each class: from the network, and calibrated.
    answer
        Predicted class or classes, written as in a manifest.
    """

    raw: tuple[float, ...]
    probability: tuple[float, ...]
    answer: str


def verdict(task: Task, raw: tuple[float, ...], calibration: TaskCalibration) -> Verdict:
    """Calibrate the probabilities of one slide and apply the thresholds."""
    probability = calibrated(task, raw, calibration.temperature)
    return Verdict(raw, probability, task.answer(probability, calibration.thresholds))


def calibrated(task: Task, raw: tuple[float, ...], temperature: float) -> tuple[float, ...]:
    """Apply temperature scaling: to all classes together, or to each class where several may hold."""
    if temperature == 1:
        return raw  # to the bit
    values = np.array(raw, np.float64)  # (C,)
    if task.kind == "single":
        return tuple(with_temperature(values, temperature).tolist())
    return tuple(with_temperature(np.stack([1 - values, values], 1), temperature)[:, 1].tolist())
