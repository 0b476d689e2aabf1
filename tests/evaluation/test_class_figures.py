"""Tasks of several classes: by hand, and against the library."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from wsi_ips.evaluation import auc_with_interval, evaluate_task

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
