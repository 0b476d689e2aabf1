"""Figures of a cohort: the threshold has not seen the test slides, subgroups add up, what is missing is said."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.classification import auc_with_interval
from wsi_ips.evaluation.slide_evaluation import Groups, Scored, evaluate_slides, evaluate_task, task_figures


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
    assert "perfectly separated" in found.notes[0]


def test_one_class_only_is_refused():
    with pytest.raises(EvaluationError, match="both"):
        evaluate_slides(Scored(np.ones(3, int), np.full(3, 0.5)))


TRUTH = np.array([0, 0, 1, 1, 2, 2, 2])
PROBABILITY = np.array(
    [
        [0.7, 0.2, 0.1],
        [0.2, 0.5, 0.3],
        [0.1, 0.8, 0.1],
        [0.3, 0.4, 0.3],
        [0.1, 0.2, 0.7],
        [0.5, 0.1, 0.4],
        [0.0, 0.1, 0.9],
    ]
)


def test_a_task_of_three_classes_is_counted_by_hand():
    found = evaluate_task("grade", ("low", "mid", "high"), TRUTH, PROBABILITY)
    assert found.confusion == ((1, 1, 0), (0, 2, 0), (1, 0, 2))
    assert found.accuracy.value == pytest.approx(5 / 7)
    assert (found.accuracy.positives, found.accuracy.negatives) == (5, 2)
    assert found.kappa == pytest.approx(metrics.cohen_kappa_score(TRUTH, PROBABILITY.argmax(1)))
    low, mid, high = found.classes
    assert (low.positives, low.negatives, low.found.value, low.others_right.value) == (2, 5, 1 / 2, 4 / 5)
    assert (mid.found.value, mid.others_right.value) == (1, 4 / 5)
    assert high.auc == auc_with_interval(TRUTH == 2, PROBABILITY[:, 2])
    assert found.mean_auc == pytest.approx(np.mean([c.auc.value for c in found.classes]))


def test_several_classes_may_hold_and_an_answer_is_right_as_a_whole():
    truth = np.array([[True, False], [True, True], [False, False]])
    found = evaluate_task("ihc", ("er", "pr"), truth, np.array([[0.9, 0.6], [0.8, 0.7], [0.1, 0.2]]))
    assert found.accuracy.value == pytest.approx(2 / 3)
    assert (found.confusion, found.kappa, found.kind) == ((), None, "multi")
    assert found.classes[1].others_right.value == pytest.approx(1 / 2)


def test_a_class_that_no_slide_has_is_there_without_figures():
    found = evaluate_task("grade", ("low", "mid", "high"), np.array([0, 1]), PROBABILITY[:2])
    assert found.classes[2].auc is found.classes[2].found is None
    assert found.confusion[2] == (0, 0, 0)
    assert evaluate_task("grade", ("low", "mid"), np.array([0]), PROBABILITY[:1, :2]).kappa is None


def test_single_label_accuracy_and_auc_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 60)
    probability = rng.dirichlet(np.ones(3), 60)
    found = task_figures(truth, probability)
    assert found.slides == 60
    assert found.accuracy == metrics.accuracy_score(truth, probability.argmax(1))
    assert found.auc == pytest.approx(metrics.roc_auc_score(truth, probability, multi_class="ovr", average="macro"))


def test_multi_label_counts_each_class_of_each_slide():
    truth = np.array([[True, False], [False, False], [True, True]])
    probability = np.array([[0.9, 0.4], [0.6, 0.1], [0.7, 0.5]])
    found = task_figures(truth, probability)
    assert found.accuracy == pytest.approx(5 / 6)
    assert found.auc == 1.0


def test_classes_that_hold_for_all_or_none_have_no_auc():
    truth = np.array([[True, False], [True, True]])
    assert task_figures(truth, np.array([[0.1, 0.2], [0.9, 0.8]])).auc == 1.0
    assert task_figures(np.array([1, 1]), np.array([[0.1, 0.9], [0.9, 0.1]])).auc is None


@pytest.mark.parametrize(
    ("truth", "probability", "says"),
    [
        (np.array([0, 1]), np.ones((3, 2)), "do not match"),
        (np.empty(0, int), np.ones((0, 2)), "do not match"),
        (np.array([0, 2]), np.ones((2, 2)), "2 classes"),
        (np.array([0, 1]), np.full((2, 2), np.nan), "not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(truth, probability, says):
    with pytest.raises(EvaluationError, match=says):
        task_figures(truth, probability)
