"""Figures of a cohort: the threshold has not seen the test slides, subgroups add up, what is missing is said."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.classification import auc_with_interval
from wsi_ips.evaluation.slide_evaluation import Groups, Scored, evaluate_slides


def cohort(seed: int, count: int = 60, *, shifted: float = 0.0) -> Scored:
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % 2
    score = 1 / (1 + np.exp(-(rng.normal(0, 1, count) + 2 * truth - 1 + shifted)))
    return Scored(truth, score)


def test_the_threshold_is_that_of_the_validation_slides():
    test, validation = cohort(0), cohort(1, shifted=2.0)
    found = evaluate_slides(test, validation)
    assert found.threshold_from == "validation"
    assert found.threshold > 0.7
    positive = test.score[test.truth == 1]
    assert found.metrics["sensitivity"].value == pytest.approx((positive >= found.threshold).mean())
    c = found.confusion
    assert (c.true_positive + c.false_negative, c.false_positive + c.true_negative) == (30, 30)
    assert c.true_positive == (positive >= found.threshold).sum()
    assert found.temperature is not None
    assert found.notes == ()


def test_without_validation_slides_it_is_a_half_and_said():
    found = evaluate_slides(cohort(0))
    assert (found.threshold, found.threshold_from, found.temperature) == (0.5, "default", None)
    assert "no validation slides" in found.notes[0]
    one_class = Scored(np.zeros(3, int), np.full(3, 0.2))
    assert "set no threshold" in evaluate_slides(cohort(0), one_class).notes[0]
    assert evaluate_slides(cohort(0), cohort(1), threshold=0.3).threshold_from == "given"


def test_subgroups_add_up_and_have_figures_of_their_own():
    test = cohort(0)
    centres = ["a", "a", "b"] * 20
    found = evaluate_slides(test, groups=Groups({"centre": centres, "kind": ["x"] * 60})).subgroups
    assert [(g.name, g.value) for g in found] == [("centre", "a"), ("centre", "b"), ("kind", "x")]
    assert sum(g.positives + g.negatives for g in found[:2]) == 60
    here = np.array(centres) == "a"
    assert found[0].auc == auc_with_interval(test.truth[here], test.score[here])
    assert found[0].sensitivity.value == pytest.approx((test.score[here & (test.truth == 1)] >= 0.5).mean())


def test_a_group_of_one_class_has_no_auc():
    test = cohort(0)
    groups = Groups({"label": [str(t) for t in test.truth]})
    negatives, positives = evaluate_slides(test, groups=groups).subgroups
    assert negatives.auc is positives.auc is None
    assert negatives.sensitivity is positives.specificity is None
    assert negatives.specificity is not None


def test_classes_that_are_separated_wholly_have_no_slope_and_it_is_said():
    found = evaluate_slides(Scored(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])), threshold=0.5)
    assert found.calibration is None
    assert "separated wholly" in found.notes[0]


def test_one_class_only_is_refused():
    with pytest.raises(EvaluationError, match="both"):
        evaluate_slides(Scored(np.ones(3, int), np.full(3, 0.5)))
