"""What a cell of the manifest means, and back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wsi_ips.labels import Task

GRADE = Task("grade", ("low", "mid", "high"))
MARKERS = Task("markers", ("er", "pr", "her2"), "multi")
LABEL = Task("label", ("normal", "tumor"))


@pytest.mark.parametrize(
    ("task", "text", "truth"),
    [
        (GRADE, "mid", 1),
        (GRADE, None, None),
        (MARKERS, "er;her2", (True, False, True)),
        (MARKERS, "none", (False, False, False)),
        (MARKERS, "", None),
    ],
)
def test_a_cell_says_what_is_known_and_can_be_written_again(task, text, truth):
    assert task.parse(text) == truth
    assert task.format(truth) == (text or None)


def test_classes_come_back_in_the_order_of_the_recipe():
    assert MARKERS.format(MARKERS.parse(" her2 ; er")) == "er;her2"


ODD = [(GRADE, "worst"), (GRADE, "low;mid"), (MARKERS, "er;ki67"), (MARKERS, "er;")]


@pytest.mark.parametrize(("task", "text"), ODD)
def test_what_is_no_class_is_refused_by_name(task, text):
    with pytest.raises(ValueError, match=r"not a class of the recipe \("):
        task.parse(text)


def test_the_answer_is_the_most_probable_class_or_all_from_a_half_on():
    assert GRADE.answer((0.2, 0.5, 0.3)) == "mid"
    assert MARKERS.answer((0.5, 0.2, 0.9)) == "er;her2"
    assert MARKERS.answer((0.4, 0.2, 0.1)) == "none"


def test_positive_is_the_last_class_and_negative_nothing_but_the_first():
    stated = replace(GRADE, background=True)
    assert [(stated.is_positive(t), stated.is_negative(t)) for t in (0, 1, 2, None)] == [
        (False, True),
        (False, False),
        (True, False),
        (False, False),
    ]
    assert MARKERS.is_positive((False, False, True))
    assert MARKERS.is_negative((False, False, False))
    assert not MARKERS.is_negative(None)
    assert not any(GRADE.is_negative(t) for t in (0, 1, 2, None))


@pytest.mark.parametrize(
    "name", ["normal", "Negative", "benign", "none", "healthy", "0", "no", "tumor-free", "no_cancer"]
)
def test_a_first_class_named_like_nothing_found_is_the_background(name):
    assert Task("label", (name, "other")).has_background
    assert not Task("label", ("other", name)).has_background
    assert not Task("label", (name, "other"), background=False).has_background


@pytest.mark.parametrize(
    "name", ["luad", "G1", "triple-negative", "non-small cell", "normal-like", "1", "low", "nodular"]
)
def test_any_other_first_class_is_a_finding_unless_stated(name):
    assert not Task("label", (name, "other")).has_background
    assert Task("label", (name, "other"), background=True).has_background
    assert Task("label", (name, "other"), "multi").has_background


def test_tasks_that_differ_only_in_the_background_are_the_same_for_weights():
    assert replace(LABEL, background=False) == LABEL


@pytest.mark.parametrize(
    ("probability", "threshold", "answer"),
    [(0.4, None, "normal"), (0.4, 0.4, "tumor"), (0.3999, 0.4, "normal"), (0.7, 0.71, "normal"), (0.71, 0.71, "tumor")],
)
def test_the_last_of_two_classes_is_predicted_from_its_threshold_on(probability, threshold, answer):
    thresholds = () if threshold is None else (threshold,)
    assert LABEL.answer((1 - probability, probability), thresholds) == answer


def test_each_class_of_a_multi_label_task_has_its_own_threshold():
    assert MARKERS.answer((0.45, 0.45, 0.45), (0.45, 0.46, 0.4)) == "er;her2"
    assert MARKERS.answer((0.45, 0.45, 0.45)) == "none"
    assert MARKERS.answer((0.5, 0.499, 0.0)) == "er"
