"""Probabilities of a slide after temperature scaling, and its call."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax

from wsi_ips.evaluation.calibration import TaskCalibration, calibrated
from wsi_ips.inference.slide_scores import verdict
from wsi_ips.labels import Task

LABEL, GRADE = Task("label", ("normal", "tumor")), Task("grade", ("a", "b", "c"))
SIGNS = Task("signs", ("x", "y"), "multi")


def test_temperature_divides_the_logits():
    logits = np.array([1.0, -2.0, 0.5])
    found = calibrated(GRADE, tuple(softmax(logits)), 2.5)
    np.testing.assert_allclose(found, softmax(logits / 2.5), rtol=1e-12)
    found = calibrated(SIGNS, tuple(expit(logits[:2])), 2.5)
    np.testing.assert_allclose(found, expit(logits[:2] / 2.5), rtol=1e-12)


def test_temperature_one_changes_no_bit():
    raw = (1e-30, 1 - 1e-30)
    assert calibrated(LABEL, raw, 1.0) is raw


@pytest.mark.parametrize(("threshold", "answer"), [(0.62, "tumor"), (0.63, "normal")])
def test_the_threshold_is_one_of_calibrated_probabilities(threshold, answer):
    raw = (0.2689414213699951, 0.7310585786300049)  # log-odds 1; at temperature 2: 0.6225
    found = verdict(LABEL, raw, TaskCalibration("label", 2.0, (threshold,)))
    assert found.raw == raw
    assert found.probability[1] == pytest.approx(0.62246, abs=1e-5)
    assert found.answer == answer
