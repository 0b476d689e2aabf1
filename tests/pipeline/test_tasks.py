"""Several tasks from the manifest to predictions and figures, on real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.small_cohort import write_recipe
from wsi_ips.config import load_recipe
from wsi_ips.errors import CheckpointError, ManifestError, TrainingError
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.pipeline import run_pipeline

LABELS = {
    "classes": ["normal", "tumor"],
    "further": {
        "grade": {"classes": ["0", "1", "2"]},
        "signs": {"column": "seen", "classes": ["pen", "fold", "tumor"], "kind": "multi"},
    },
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight slides with two more columns; one grade and one sign are not known."""
    folder = tmp_path_factory.mktemp("tasks")
    write_recipe(folder)
    path = folder / "cohort" / "manifest.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["grade"] = [str(i % 3) for i in range(len(table))]
    without = ["none" if i % 2 else "fold" for i in range(len(table))]
    table["seen"] = np.where(table["label"] == "tumor", "tumor;pen", without)
    table.loc[0, "grade"] = table.loc[1, "seen"] = ""
    table.to_csv(path, index=False)
    return folder


def recipe(folder: Path, **changes: object) -> Path:
    return write_recipe(folder, labels=LABELS, **changes)


@pytest.fixture(scope="module")
def done(cohort: Path) -> Path:
    assert run_pipeline(load_recipe(recipe(cohort))).failed == 0
    return cohort


def test_each_task_has_its_columns_and_probabilities(done):
    table = pd.read_csv(done / "out" / "predictions.csv", dtype=str, keep_default_na=False)
    assert len(table) == 4
    grades = table[[f"grade_probability_{g}" for g in "012"]].astype(float)
    np.testing.assert_allclose(grades.sum(axis=1), 1, atol=1e-5)
    assert (table["grade_predicted"] == grades.to_numpy().argmax(1).astype(str)).all()
    manifest = pd.read_csv(done / "cohort" / "manifest.csv", dtype=str, keep_default_na=False).set_index("slide_id")
    assert (table["grade_label"].to_numpy() == manifest.loc[table["slide_id"], "grade"].to_numpy()).all()
    for row in table.to_dict("records"):
        named = [c for c in ("pen", "fold", "tumor") if float(row[f"signs_probability_{c}"]) >= 0.5]
        assert row["signs_predicted"] == (";".join(named) or "none")
        scores = read_scores(done / "out" / "scores.zarr", str(row["slide_id"]))
        assert scores.attention_logits.shape[1:] == (3, 2)  # a query per task
        assert scores.tile_probability.shape[1] == 2 + 3 + 3
        assert (scores.positive_probability == scores.tile_probability[:, 1]).all()


def test_the_summary_has_figures_of_each_task_of_the_slides_that_are_known(done):
    summary = json.loads((done / "out" / "summary.json").read_text())
    table = pd.read_csv(done / "out" / "predictions.csv", dtype=str, keep_default_na=False)
    known = table[table["grade_label"] != ""]
    assert summary["test_slides_grade"] == len(known)
    assert summary["test_accuracy_grade"] == pytest.approx((known["grade_predicted"] == known["grade_label"]).mean())
    assert 0 <= summary["test_accuracy_signs"] <= 1
    html = (done / "out" / "report" / "index.html").read_text()
    assert "accuracy, grade" in html
    assert "Task grade" in html
    assert "Task signs" in html
    assert "Confusion matrix of task grade" in html
    assert "Confusion matrix of task signs" not in html  # several may hold
    tasks = {t["name"]: t for t in json.loads((done / "out" / "evaluation.json").read_text())["tasks"]}
    assert sum(map(sum, tasks["grade"]["confusion"])) == len(known)
    assert [c["name"] for c in tasks["signs"]["classes"]] == ["pen", "fold", "tumor"]


def test_a_second_run_computes_nothing(done):
    assert not run_pipeline(load_recipe(recipe(done))).worked


def test_a_checkpoint_of_other_tasks_is_refused(done, tmp_path):
    shutil.copytree(done, tmp_path / "copy")
    path = write_recipe(tmp_path / "copy", predict={"checkpoint": "out/model"})
    with pytest.raises(
        CheckpointError, match=r"`signs` pen, fold, tumor \(any of them\).*the recipe has.*labels.further"
    ):
        run_pipeline(load_recipe(path))


def test_a_label_that_is_no_class_names_slide_column_and_key(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "copy", ignore=shutil.ignore_patterns("out"))
    path = tmp_path / "copy" / "cohort" / "manifest.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[2, "seen"] = "tumor;ink"
    table.to_csv(path, index=False)
    says = rf"`seen`.*{table.loc[2, 'slide_id']}: `tumor;ink`.*labels.further.signs.classes"
    with pytest.raises(ManifestError, match=says):
        run_pipeline(load_recipe(recipe(tmp_path / "copy")))


def test_a_task_without_a_column_is_refused(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "copy", ignore=shutil.ignore_patterns("out"))
    path = write_recipe(tmp_path / "copy", labels={"further": {"stage": {"classes": ["i", "ii"]}}})
    with pytest.raises(ManifestError, match="column `stage` is missing"):
        run_pipeline(load_recipe(path))


def test_a_task_with_nothing_to_tell_apart_is_refused(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "copy", ignore=shutil.ignore_patterns("out"))
    further = {"grade": {"classes": ["0", "1", "2"]}, "site": {"column": "split", "classes": ["train", "test"]}}
    path = write_recipe(tmp_path / "copy", labels={"further": further})
    with pytest.raises(TrainingError, match=r"task `site`.*all alike \(train 4, test 0\)"):
        run_pipeline(load_recipe(path))
