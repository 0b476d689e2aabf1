"""Figures of tasks with several classes: hand-worked cases and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation import task_figures


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
