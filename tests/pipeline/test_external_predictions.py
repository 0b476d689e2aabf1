"""Evaluation of a table of predictions: what is measured, and what a table that cannot be used says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.classification import auc_with_interval
from wsi_ips.evaluation.summary import Evaluation
from wsi_ips.pipeline.external_predictions import TableQuestion, evaluate_files


def evaluate_table(path: Path, positive: str = "tumor", by: tuple[str, ...] = ()) -> Evaluation:
    return evaluate_files(TableQuestion(positive, by), predictions=path)


def write_table(path: Path, **changes: object) -> Path:
    rng = np.random.default_rng(3)
    table = pd.DataFrame(
        {
            "slide_id": [f"s{i}" for i in range(40)],
            "label": ["tumor" if i % 2 else "normal" for i in range(40)],
            "probability": np.round(np.clip(rng.normal(0.3, 0.2, 40) + 0.3 * (np.arange(40) % 2), 0, 1), 4),
            "split": ["val"] * 10 + ["test"] * 30,
            "centre": ["a", "b", "c"] * 13 + ["a"],
        }
    ).astype(object)
    for column, cells in changes.items():
        if cells is None:
            table = table.drop(columns=column)
        else:
            table.loc[0 if column != "label" else 20, column] = cells
    table.to_csv(path, index=False)
    return path


def test_a_table_from_elsewhere_is_measured_on_its_test_slides(tmp_path):
    path = write_table(tmp_path / "p.csv", label="")
    found = evaluate_table(path, by=("centre",))
    table = pd.read_csv(path)
    test = table[(table["split"] == "test") & table["label"].notna()]
    assert found.slides.threshold_from == "validation"
    expected = auc_with_interval((test["label"] == "tumor").astype(int), test["probability"])
    assert found.slides.metrics["auc"].value == pytest.approx(expected.value)
    assert sum(g.positives + g.negatives for g in found.slides.subgroups) == 29
    assert "1 slides without a label" in found.notes[-1]
    assert all(g.name == "centre" for g in found.slides.subgroups)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"probability": "high"}, r"column `probability`: 1 cells are not probabilities.*s0"),
        ({"probability": 1.2}, r"not probabilities.*s0"),
        ({"label": None}, "no column `label`"),
        ({"slide_id": "s5"}, "row 7, column `slide_id`: `s5` is already in row 2"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path, changes, says):
    with pytest.raises(EvaluationError, match=says):
        evaluate_table(write_table(tmp_path / "p.csv", **changes))
    with pytest.raises(EvaluationError, match="no slide has label `cancer`"):
        evaluate_table(write_table(tmp_path / "p.csv"), "cancer")


def test_a_table_of_nodes_needs_no_probability(tmp_path):
    path = tmp_path / "nodes.csv"
    rows = ["p1,negative,negative", "p1,macro,macro", "p2,itc,negative", "p3,micro,micro", "p3,,micro"]
    body = "\n".join(f"n{i},{row}" for i, row in enumerate(rows))
    path.write_text(f"slide_id,patient_id,label,predicted\n{body}\n", encoding="utf-8")
    found = evaluate_table(path, "macro")
    assert [(p.stage, p.predicted) for p in found.patients.patients] == [
        ("pN1", "pN1"),
        ("pN0(i+)", "pN0"),
        ("pN1mi", "pN1mi"),
    ]
    assert found.slides is None
    assert "1 nodes without" in found.notes[0]


def test_slides_of_a_patient_are_told_to_the_intervals(tmp_path):
    path = write_table(tmp_path / "p.csv")
    table = pd.read_csv(path)
    table["patient_id"] = [f"p{i // 4}" for i in range(len(table))]
    table.to_csv(path, index=False)
    found = evaluate_table(path).slides
    assert found.metrics["auc_bootstrap"].method == "bootstrap by patient"
    assert found.patients == 8
