"""Calibrated probabilities of a slide and its predicted classes. Numbers in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

from wsi_ips.evaluation.calibration import TaskCalibration, calibrated
from wsi_ips.labels import Task


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
