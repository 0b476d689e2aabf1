"""Stages by the rule of CAMELYON17, and their agreement."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.staging import (
    Node,
    PatientStage,
    largest_part_mm,
    node_label,
    pn_stage,
    quadratic_kappa,
    stage_patients,
)
from wsi_ips.geometry import Scale


@pytest.mark.parametrize(
    ("longest_mm", "label"),
    [(0, "negative"), (0.05, "itc"), (0.199, "itc"), (0.2, "micro"), (2.0, "micro"), (2.01, "macro"), (30, "macro")],
)
def test_a_node_is_called_by_its_longest_metastasis(longest_mm, label):
    assert node_label(longest_mm) == label


@pytest.mark.parametrize(
    ("nodes", "stage"),
    [
        (["negative"] * 5, "pN0"),
        (["negative", "itc", "itc", "itc", "itc"], "pN0(i+)"),
        (["micro", "itc", "negative", "negative", "negative"], "pN1mi"),
        (["micro"] * 5, "pN1mi"),
        (["macro", "negative", "itc", "itc", "itc"], "pN1"),  # isolated cells make no node positive
        (["macro", "micro", "micro", "negative", "itc"], "pN1"),
        (["macro", "micro", "micro", "micro", "negative"], "pN2"),
        (["macro"] * 9, "pN2"),
    ],
)
def test_stage_of_a_patient(nodes, stage):
    assert pn_stage(nodes) == stage


def test_what_the_rule_does_not_know_is_refused():
    with pytest.raises(EvaluationError, match="ends at 9"):
        pn_stage(["macro"] * 10)
    with pytest.raises(EvaluationError, match="negative, itc, micro, macro"):
        pn_stage(["big"])
    with pytest.raises(EvaluationError, match="give one or more"):
        pn_stage([])


def test_kappa_is_that_of_scikit_learn_on_the_order_of_stages():
    truth = ["pN0", "pN0(i+)", "pN1mi", "pN1", "pN2", "pN0", "pN1"]
    guess = ["pN0", "pN0", "pN1", "pN1", "pN1mi", "pN0", "pN2"]
    order = ["pN0", "pN0(i+)", "pN1mi", "pN1", "pN2"]
    numbers = [[order.index(s) for s in stages] for stages in (truth, guess)]
    assert quadratic_kappa(truth, guess) == pytest.approx(metrics.cohen_kappa_score(*numbers, weights="quadratic"))
    by_chance = sum((a - b) ** 2 for a in numbers[0] for b in numbers[1]) / len(truth)
    assert quadratic_kappa(truth, guess) == pytest.approx(1 - (0 + 1 + 1 + 0 + 4 + 0 + 1) / by_chance)


def test_kappa_of_nothing_to_agree_on_is_refused():
    with pytest.raises(EvaluationError, match="undefined"):
        quadratic_kappa(["pN0"] * 3, ["pN0"] * 3)


def test_the_longest_part_is_measured_over_the_corners_of_its_cells():
    called = np.zeros((6, 9), bool)
    called[1, 1:4] = True  # three cells of 100 x 50 µm in a row
    called[2, 4] = True  # touches by a corner
    called[5, 8] = True
    assert largest_part_mm(called, Scale(100, 50)) == pytest.approx(np.hypot(400, 100) / 1000)
    assert largest_part_mm(np.zeros((3, 3), bool), Scale(100, 50)) == 0


def test_kappa_of_a_hand_worked_table():
    """Two of four right, one off by one, one by two: 1 - (squared distances) / (those that the margins would give)."""
    truth, predicted = ["pN0", "pN0", "pN1mi", "pN1"], ["pN0", "pN1mi", "pN1mi", "pN2"]
    # Stages 0 0 2 3 and 0 2 2 4: squared distances 0 + 4 + 0 + 1; of all 16 pairs 24 + 24 + 8 + 12, a quarter is 17.
    assert quadratic_kappa(truth, predicted) == pytest.approx(1 - 5 / 17)


def test_patients_are_staged_by_all_their_nodes():
    rows = [
        ("p1", "negative", "negative"),
        ("p1", "macro", "macro"),
        ("p2", "itc", "itc"),
        ("p2", "negative", "micro"),
        ("p3", "micro", "micro"),
    ]
    found = stage_patients([Node(*row) for row in rows], [])
    assert found.patients == (
        PatientStage("p1", "pN1", "pN1"),
        PatientStage("p2", "pN0(i+)", "pN1mi"),
        PatientStage("p3", "pN1mi", "pN1mi"),
    )
    assert found.right == 2
    assert 0 < found.kappa < 1
    notes: list[str] = []
    assert stage_patients([Node(*rows[-1])], notes).kappa is None
    assert "undefined" in notes[0]
