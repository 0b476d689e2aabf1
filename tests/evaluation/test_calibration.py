"""Calibration: simulated cohorts of which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation import calibration_slope, fit_temperature, fixed_threshold, reliability, with_temperature


def cohort(count: int, *, sharpened: float = 1.0, shifted: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Truth drawn from log-odds; probabilities from those times ``sharpened`` plus ``shifted``."""
    rng = np.random.default_rng(5)
    log_odds = rng.normal(0, 1.5, count)
    truth = (rng.random(count) < special.expit(log_odds)).astype(int)
    return truth, special.expit(sharpened * log_odds + shifted)


def test_a_calibrated_model_has_slope_one_and_intercept_nought():
    found = calibration_slope(*cohort(40_000))
    assert found.slope == pytest.approx(1, abs=0.03)
    assert found.intercept == pytest.approx(0, abs=0.03)


def test_a_model_that_is_too_sure_has_a_small_slope_and_its_temperature_mends_it():
    truth, score = cohort(40_000, sharpened=2.5)
    assert calibration_slope(truth, score).slope == pytest.approx(1 / 2.5, abs=0.02)
    both = np.stack([1 - score, score], 1)
    temperature = fit_temperature(both, truth)
    assert temperature == pytest.approx(2.5, rel=0.03)
    mended = with_temperature(both, temperature)
    np.testing.assert_allclose(mended.sum(1), 1)
    assert calibration_slope(truth, mended[:, 1]).slope == pytest.approx(1, abs=0.02)
    assert (np.argsort(mended[:, 1], kind="stable") == np.argsort(score, kind="stable")).all()


def test_a_shift_shows_in_the_intercept():
    assert calibration_slope(*cohort(40_000, shifted=0.7)).intercept == pytest.approx(-0.7, abs=0.03)


def test_a_temperature_of_slides_that_are_separated_wholly_stays_within_bounds():
    assert fit_temperature(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])) == pytest.approx(0.05, rel=0.01)


def test_reliability_bins_hold_all_slides_and_their_intervals_the_truth():
    truth, score = cohort(5_000)
    bins = reliability(truth, score, bins=8)
    assert sum(b.slides for b in bins) == 5_000
    assert max(b.slides for b in bins) - min(b.slides for b in bins) <= 1
    assert sum(b.low <= b.predicted <= b.high for b in bins) >= 7
    assert sum(b.observed * b.slides for b in bins) == pytest.approx(truth.sum())
    assert len(reliability([0, 1, 1], [0.1, 0.5, 0.9], bins=8)) == 3


def test_the_threshold_is_in_the_middle_between_slides():
    assert fixed_threshold([0, 0, 1, 1], [0.1, 0.3, 0.7, 0.9]) == pytest.approx(0.5)
    assert fixed_threshold([0, 1, 0, 1], [0.1, 0.2, 0.6, 0.8]) in (pytest.approx(0.15), pytest.approx(0.7))
    assert fixed_threshold([0, 1], [0.4, 0.4]) == 0.4


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(EvaluationError, match="separated wholly"):
        calibration_slope([0, 0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(EvaluationError, match="do not match"):
        fit_temperature(np.ones((2, 2)), np.array([0]))
    with pytest.raises(EvaluationError, match="both"):
        fixed_threshold([1, 1], [0.1, 0.2])
