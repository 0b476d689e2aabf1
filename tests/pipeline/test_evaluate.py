"""`wsi-ips evaluate`: of a run on real files, and of a table from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.pipeline.test_run import done, recipe_of  # noqa: F401 - `done` is a fixture
from wsi_ips.annotations import read_asap
from wsi_ips.cli import app
from wsi_ips.errors import EvaluationError, ManifestError
from wsi_ips.evaluation import auc_with_interval
from wsi_ips.inference import read_scores
from wsi_ips.pipeline import Run
from wsi_ips.pipeline.evaluate import evaluate_run, stage_patients
from wsi_ips.pipeline.evaluate_table import evaluate_table


@pytest.fixture(scope="module")
def run(done: Path) -> Run:  # noqa: F811
    return Run.open(recipe_of(done))


def test_slide_figures_are_those_of_the_predictions(done, run):  # noqa: F811
    table = pd.read_csv(done / "out" / "predictions.csv")
    expected = auc_with_interval((table["label"] == "tumor").astype(int), table["probability_tumor"])
    found = evaluate_run(run, by=["label"])
    assert found.slides.metrics["auc"].value == pytest.approx(expected.value)
    assert {(g.value, g.positives + g.negatives) for g in found.slides.subgroups} == {("normal", 2), ("tumor", 2)}
    assert any("no validation slides" in note for note in found.notes)


def test_lesions_tiles_and_false_alarms_are_those_of_the_annotated_slides(done, run):  # noqa: F811
    found = evaluate_run(run, threshold=0.4).localisation
    test = [r for r in run.records if r.split == "test"]
    annotated = [r for r in test if r.annotation]
    assert found.tumour_slides == len(annotated) == 2
    assert found.other_slides == 2
    # The planted lesions are far apart and far larger than 200 µm: none is joined, none is ITC.
    planted = sum(len(read_asap(r.annotation).lesions()) for r in annotated)
    assert found.lesions_by_peaks.lesions == planted
    assert found.lesions_by_peaks.slides == 4
    alarms = []
    for record in test:
        entry, index = read_scores(run.folder.scores, record.slide_id), run.index(record)
        if record.annotation is None:
            side_mm = 64 * 2.0 / 1000
            alarms.append(index.tissue_fraction[entry.positive_probability >= 0.4].sum() * side_mm**2)
    assert found.false_alarm_mm2 == pytest.approx(np.mean(alarms), rel=1e-5)
    assert 0 <= found.selection_recall <= 1


def test_a_perfect_map_finds_every_lesion_and_a_turned_one_none(done, run, monkeypatch):  # noqa: F811
    """The truth in place of the scores, through the same way: grid, peaks, mask, rule."""
    from dataclasses import replace

    from wsi_ips.pipeline import evaluate

    def scores_of(root: Path, slide_id: str, *, turned: bool):
        entry = read_scores(root, slide_id)
        truth = run.index(next(r for r in run.records if r.slide_id == slide_id)).tumour_fraction
        right = np.zeros(len(entry.kept) if truth is None else len(truth)) if truth is None else truth
        if truth is None:
            right = np.zeros(len(entry.tile_probability), np.float32)
        table = np.stack([1 - right, right], 1)
        return replace(entry, tile_probability=(table[::-1] if turned else table).astype(np.float32))

    monkeypatch.setattr(evaluate, "read_scores", lambda root, name: scores_of(root, name, turned=False))
    found = evaluate_run(run).localisation
    assert found.lesions_by_peaks.score == found.lesions_by_components.score == 1
    assert found.pointing == 1
    assert found.false_alarm_mm2 == 0
    monkeypatch.setattr(evaluate, "read_scores", lambda root, name: scores_of(root, name, turned=True))
    assert evaluate_run(run).localisation.lesions_by_components.at(0.25) < 1


def test_a_column_that_is_not_there_and_a_split_without_slides_are_refused(run):
    with pytest.raises(ManifestError, match="column `centre` is missing"):
        evaluate_run(run, by=["centre"])
    with pytest.raises(EvaluationError, match="split `val`"):
        evaluate_run(run, split="val")


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
    found = evaluate_table(path, positive="tumor", by=["centre"])
    table = pd.read_csv(path)
    test = table[(table["split"] == "test") & table["label"].notna()]
    assert found.slides.threshold_from == "validation"
    expected = auc_with_interval((test["label"] == "tumor").astype(int), test["probability"])
    assert found.slides.metrics["auc"].value == pytest.approx(expected.value)
    assert sum(g.positives + g.negatives for g in found.slides.subgroups) == 29
    assert "1 slides without a label" in found.notes[-1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"probability": "high"}, r"column `probability`: 1 cells are no probability.*s0"),
        ({"probability": 1.2}, r"no probability.*s0"),
        ({"label": None}, "no column `label`"),
        ({"slide_id": "s5"}, "s5 stands there twice"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path, changes, says):
    with pytest.raises(EvaluationError, match=says):
        evaluate_table(write_table(tmp_path / "p.csv", **changes), positive="tumor")
    with pytest.raises(EvaluationError, match="no slide has label `cancer`"):
        evaluate_table(write_table(tmp_path / "p.csv"), positive="cancer")


def test_the_command_prints_and_writes_what_it_found(done, tmp_path):  # noqa: F811
    result = CliRunner().invoke(app, ["evaluate", str(done / "recipe.yaml"), "--by", "label"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "FROC, peaks" in result.output
    assert "label = tumor" in result.output
    stored = json.loads((done / "out" / "evaluation.json").read_text())
    assert stored["slides"]["metrics"]["auc"]["positives"] == 2
    assert stored["localisation"]["lesions_by_peaks"]["sensitivity"][0] == 0
    table = write_table(tmp_path / "p.csv")
    result = CliRunner().invoke(app, ["evaluate", "--predictions", str(table), "--output", str(tmp_path / "e.json")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "e.json").read_text())["localisation"] is None
    assert CliRunner().invoke(app, ["evaluate"]).exit_code == 2


def test_patients_are_staged_by_all_their_nodes():
    rows = [
        ("p1", "negative", "negative"),
        ("p1", "macro", "macro"),
        ("p2", "itc", "itc"),
        ("p2", "negative", "micro"),
        ("p3", "micro", "micro"),
    ]
    found = stage_patients(pd.DataFrame(rows, columns=["patient_id", "stage", "predicted"]), [])
    assert found.table.to_dict("records") == [
        {"patient_id": "p1", "stage": "pN1", "predicted": "pN1"},
        {"patient_id": "p2", "stage": "pN0(i+)", "predicted": "pN1mi"},
        {"patient_id": "p3", "stage": "pN1mi", "predicted": "pN1mi"},
    ]
    assert 0 < found.kappa < 1
    notes: list[str] = []
    assert stage_patients(pd.DataFrame(rows[-1:], columns=["patient_id", "stage", "predicted"]), notes).kappa is None
    assert "undefined" in notes[0]
