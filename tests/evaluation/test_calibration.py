"""Calibration: simulated cohorts with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.calibration import (
    LEAST_SLIDES,
    calibration_slope,
    fit_task,
    fit_temperature,
    fixed_threshold,
    reliability,
    with_temperature,
)
from wsi_ips.labels import Task

BINARY = Task("label", ("normal", "tumor"))


def cohort(count: int, *, sharpened: float = 1.0, shifted: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Truth drawn from log-odds; probabilities from those times ``sharpened`` plus ``shifted``."""
    rng = np.random.default_rng(5)
    log_odds = rng.normal(0, 1.5, count)
    truth = (rng.random(count) < expit(log_odds)).astype(int)
    return truth, expit(sharpened * log_odds + shifted)


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
    with pytest.raises(EvaluationError, match="perfectly separated"):
        calibration_slope([0, 0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(EvaluationError, match="both"):
        fixed_threshold([1, 1], [0.1, 0.2])


def simulated(slides: int, temperature: float) -> tuple[list[int], list[tuple[float, float]]]:
    """Slides whose log-odds the model overstates by this factor."""
    rng = np.random.default_rng(5)
    right = rng.normal(0, 2, slides)
    truth = (rng.random(slides) < expit(right)).astype(int)
    said = expit(right * temperature)
    return truth.tolist(), [(1 - p, p) for p in said.tolist()]


def test_the_planted_temperature_is_found_and_the_threshold_is_a_calibrated_one():
    targets, said = simulated(4000, 2.5)
    found = fit_task(BINARY, [*targets, None], [*said, (0.0, 1.0)])
    assert found.temperature == pytest.approx(2.5, rel=0.1)
    assert found.slides == 4000
    assert found.note == ""
    assert found.thresholds[0] == pytest.approx(0.5, abs=0.06)  # the highest balanced accuracy of calibrated slides


def test_several_classes_have_a_temperature_and_no_threshold():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (3000, 3))
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = [int(rng.choice(3, p=p)) for p in chance]
    sharp = np.exp(logits * 3) / np.exp(logits * 3).sum(1, keepdims=True)
    found = fit_task(Task("grade", ("a", "b", "c")), truth, [tuple(p) for p in sharp.tolist()])
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert found.thresholds == ()


def test_each_class_that_may_hold_has_a_threshold_of_its_own():
    rng = np.random.default_rng(2)
    said = rng.random((400, 2))
    truth = np.stack([said[:, 0] > 0.2, said[:, 1] > 0.7], 1)
    truth[::10] = ~truth[::10]
    found = fit_task(Task("signs", ("x", "y"), "multi"), [tuple(t) for t in truth.tolist()], list(map(tuple, said)))
    scaled = expit(logit(np.array([0.2, 0.7])) / found.temperature)
    np.testing.assert_allclose(found.thresholds, scaled, atol=0.03)


def test_too_few_slides_leave_the_defaults_and_say_so():
    few = [0] * LEAST_SLIDES + [1] * (LEAST_SLIDES - 1)
    found = fit_task(BINARY, few, [(0.6, 0.4)] * len(few))
    assert (found.temperature, found.thresholds) == (1.0, (0.5,))
    assert "10 normal, 9 tumor; 10 of each are needed" in found.note
    assert "threshold of `tumor` 0.5: too few" in found.note
    assert fit_task(BINARY, [None], [(0.6, 0.4)]).note.startswith("no validation slides")


def test_decided_by_tiles_a_few_slides_fix_the_threshold_for_the_default_is_worth_nothing():
    targets, said = [0, 0, 0, 1, 1, 1], [(0.4, 0.6)] * 3 + [(0.1, 0.9)] * 3
    found = fit_task(BINARY, targets, said, "tiles")
    assert (found.temperature, found.decision, found.thresholds_from) == (1.0, "tiles", "validation")
    assert found.thresholds == pytest.approx((0.75,))
    assert "threshold of `tumor`: from few validation slides, 3 of one kind" in found.note
    assert fit_task(BINARY, targets[1:], said[1:], "tiles").thresholds == (0.5,)
    assert fit_task(BINARY, targets, said).thresholds == (0.5,)


def test_slides_that_are_all_right_fix_a_threshold_and_no_temperature():
    targets = [0] * 20 + [1] * 20
    said = [(0.9, 0.1)] * 20 + [(0.3, 0.7)] * 20
    found = fit_task(BINARY, targets, said)
    assert found.temperature == 1
    assert found.thresholds == pytest.approx((0.4,))
    assert "no finite one fits" in found.note
