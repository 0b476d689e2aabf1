"""`wsi-ips evaluate`: of a run on real files, and of a table from elsewhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.pipeline.test_run import done, recipe_of  # noqa: F401 - `done` is a fixture
from wsi_ips.annotations import read_asap
from wsi_ips.cli import app
from wsi_ips.errors import EvaluationError, ManifestError
from wsi_ips.evaluation import PatientStage, auc_with_interval, peak_detections
from wsi_ips.inference import read_scores
from wsi_ips.pipeline import Run
from wsi_ips.pipeline.evaluation import evaluate
from wsi_ips.pipeline.evaluation.evaluate import evaluate_run, stage_patients
from wsi_ips.pipeline.evaluation.localise import LEAST_PEAK, localise, score_raster
from wsi_ips.pipeline.evaluation.table import evaluate_others, evaluate_table


@pytest.fixture(scope="module")
def run(done: Path) -> Run:  # noqa: F811
    return Run.open(recipe_of(done))


def test_slide_figures_are_those_of_the_predictions(done, run):  # noqa: F811
    table = pd.read_csv(done / "out" / "predictions.csv")
    expected = auc_with_interval((table["label"] == "tumor").astype(int), table["probability_tumor"])
    found = evaluate_run(run, by=["label"])
    assert found.slides.metrics["auc"].value == pytest.approx(expected.value)
    groups = {(g.name, g.value): (g.positives, g.negatives) for g in found.slides.subgroups}
    assert groups == {("label", "normal"): (0, 2), ("label", "tumor"): (2, 0), ("largest lesion", "micro"): (2, 2)}
    assert found.tasks == ()
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
    assert found.lesions_by_peaks.interval[0] <= found.lesions_by_peaks.score <= found.lesions_by_peaks.interval[1]
    assert [(s.size, s.slides) for s in found.by_size] == [("micro", 2)]
    assert found.by_size[0].selected / 2 == found.selection_recall
    assert found.by_size[0].pointed / 2 == found.pointing
    summary = json.loads((done / "out" / "summary.json").read_text())
    assert found.tile_probability.auc == pytest.approx(summary["tile_auc_probability"])
    assert 1 <= found.effective_tiles <= max(len(run.index(r)) for r in test)
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


def test_where_the_map_knows_more_than_the_decision_it_is_told(done, run, monkeypatch):  # noqa: F811
    """The decision turned round; the map is the truth."""
    table = pd.read_csv(done / "out" / "predictions.csv").set_index("slide_id")

    def scores_of(root: Path, slide_id: str, *, turned: bool):
        entry = read_scores(root, slide_id)
        assert table.loc[slide_id, "highest_tiles"] == pytest.approx(entry.highest_tiles, abs=1e-6)
        truth = run.index(next(r for r in run.records if r.slide_id == slide_id)).tumour_fraction
        right = np.zeros(len(entry.tile_probability)) if truth is None else truth
        called = float((truth is None) == turned)
        return replace(
            entry,
            tile_probability=np.stack([1 - right, right], 1).astype(np.float32),
            probabilities=((1 - called, called),),
        )

    for turned in (False, True):
        monkeypatch.setattr(
            evaluate, "read_scores", lambda root, name, turned=turned: scores_of(root, name, turned=turned)
        )
        told = [note for note in evaluate_run(run).notes if "highest tiles" in note]
        assert len(told) == turned
        assert all("AUC 1.000" in note and "(0.000)" in note for note in told)


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
    assert all(g.name == "centre" for g in found.slides.subgroups)


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
    result = CliRunner().invoke(app, ["score", "--predictions", str(table), "--output", str(tmp_path / "e.json")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "e.json").read_text())["localisation"] is None
    assert CliRunner().invoke(app, ["score"]).exit_code == 2


def test_patients_are_staged_by_all_their_nodes():
    rows = [
        ("p1", "negative", "negative"),
        ("p1", "macro", "macro"),
        ("p2", "itc", "itc"),
        ("p2", "negative", "micro"),
        ("p3", "micro", "micro"),
    ]
    found = stage_patients(pd.DataFrame(rows, columns=["patient_id", "stage", "predicted"]), [])
    assert found.patients == (
        PatientStage("p1", "pN1", "pN1"),
        PatientStage("p2", "pN0(i+)", "pN1mi"),
        PatientStage("p3", "pN1mi", "pN1mi"),
    )
    assert found.right == 2
    assert 0 < found.kappa < 1
    notes: list[str] = []
    assert stage_patients(pd.DataFrame(rows[-1:], columns=["patient_id", "stage", "predicted"]), notes).kappa is None
    assert "undefined" in notes[0]


def test_slides_that_are_in_no_figure_are_named_with_their_state(done, tmp_path):  # noqa: F811
    folder = tmp_path / "copy"
    shutil.copytree(done, folder)
    with Run.open(recipe_of(folder)) as run:
        gone = next(r for r in run.records if r.split == "test" and r.annotation is None)
        run.states.update(gone.slide_id, state="failed", stage="tile", reason="damaged")
        found = evaluate_run(run)
    assert found.localisation.other_slides == 1
    assert "1 of 4 slides of split `test` are in no figure: 1 failed" in found.notes


def test_an_annotation_that_cannot_be_read_costs_its_slide_alone(done, tmp_path):  # noqa: F811
    folder = tmp_path / "copy"
    shutil.copytree(done, folder)
    with Run.open(recipe_of(folder)) as run:
        broken = next(r for r in run.records if r.split == "test" and r.annotation)
        broken.annotation.write_text("<ASAP", encoding="utf-8")
        notes: list[str] = []
        scores = {r.slide_id: read_scores(run.folder.scores, r.slide_id) for r in run.records if r.split == "test"}
        chosen = [r for r in run.records if r.split == "test"]
        found = localise(run, scores, chosen, notes, threshold=0.5, sizes={})
    assert (found.tumour_slides, found.other_slides) == (1, 2)
    assert broken.slide_id in notes[0]


def write_detections(run: Run, folder: Path, *, header: bool) -> None:
    """What the run's own map shows, as anybody would hand it in."""
    folder.mkdir()
    for record in run.records:
        if record.split != "test":
            continue
        entry, index = read_scores(run.folder.scores, record.slide_id), run.index(record)
        raster = score_raster(entry, index)
        found = peak_detections(
            raster.values, origin_px0=raster.origin_px0, cell_px0=raster.cell_px0, mpp=index.mpp, least=LEAST_PEAK
        )
        rows = [f"{p},{x},{y}" for p, x, y in zip(found.score, found.x_px0, found.y_px0, strict=True)]
        (folder / f"{record.slide_id}.csv").write_text("\n".join(["probability,x,y"] * header + rows), encoding="utf-8")


@pytest.mark.parametrize("header", [True, False])
def test_detections_from_elsewhere_are_measured_as_our_own(done, run, tmp_path, header):  # noqa: F811
    write_detections(run, tmp_path / "found", header=header)
    manifest = done / "cohort" / "manifest.csv"
    own = evaluate_run(run).localisation.lesions_by_peaks
    found = evaluate_others(
        done / "out" / "predictions.csv", manifest=manifest, detections=tmp_path / "found", positive="tumor"
    )
    theirs = found.localisation.lesions_given
    assert (theirs.score, theirs.lesions, theirs.slides) == (pytest.approx(own.score), own.lesions, own.slides)
    assert theirs.interval == pytest.approx(own.interval)
    assert found.slides.metrics["auc"].positives == 2


def test_slides_without_detections_count_and_are_told(done, run, tmp_path):  # noqa: F811
    write_detections(run, tmp_path / "found", header=True)
    test = [r for r in run.records if r.split == "test"]
    (tmp_path / "found" / f"{test[0].slide_id}.csv").unlink()
    (tmp_path / "found" / "other.csv").write_text("0.5,1,1\n", encoding="utf-8")
    manifest = done / "cohort" / "manifest.csv"
    found = evaluate_others(None, manifest=manifest, detections=tmp_path / "found", positive="tumor")
    assert found.localisation.lesions_given.slides == 4
    assert any(test[0].slide_id in note and "without detections" in note for note in found.notes)
    assert any("other" in note for note in found.notes)
    (tmp_path / "found" / f"{test[1].slide_id}.csv").write_text("0.5,1,1\n\n0.7,here,3\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match=rf"{test[1].slide_id}.csv, row 3: `0.7,here,3`"):
        evaluate_others(None, manifest=manifest, detections=tmp_path / "found", positive="tumor")
    with pytest.raises(EvaluationError, match="--manifest"):
        evaluate_others(None, detections=tmp_path / "found", positive="tumor")
    with pytest.raises(EvaluationError, match="no folder"):
        evaluate_others(None, manifest=manifest, detections=tmp_path / "nowhere", positive="tumor")


def test_stages_come_from_the_maps_where_a_column_says_what_nodes_hold(done, tmp_path, monkeypatch):  # noqa: F811
    """The truth in place of the scores: every planted lesion is 0.4 to 0.6 mm, so each node with one is micro."""
    folder = tmp_path / "copy"
    shutil.copytree(done, folder)
    path = folder / "cohort" / "manifest.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["node"] = ["micro" if label == "tumor" else "negative" for label in table["label"]]
    table["patient_id"] = [f"p{i}" for i in range(len(table))]
    table.to_csv(path, index=False)
    with Run.open(recipe_of(folder)) as run:

        def truth(root: Path, slide_id: str):
            entry = read_scores(root, slide_id)
            fraction = run.index(next(r for r in run.records if r.slide_id == slide_id)).tumour_fraction
            right = np.zeros(len(entry.tile_probability)) if fraction is None else fraction
            whole = float(fraction is not None)
            map_of_truth = np.stack([1 - right, right], 1).astype(np.float32)
            return replace(entry, tile_probability=map_of_truth, probabilities=((1 - whole, whole),))

        monkeypatch.setattr(evaluate, "read_scores", truth)
        found = evaluate_run(run, nodes="node").patients
    assert {(p.stage, p.predicted) for p in found.patients} == {("pN0", "pN0"), ("pN1mi", "pN1mi")}
    assert found.kappa == 1
    with pytest.raises(ManifestError, match="column `nodes` is missing"), Run.open(recipe_of(folder)) as run:
        evaluate_run(run, nodes="nodes")


def test_a_table_of_nodes_needs_no_probability(tmp_path):
    path = tmp_path / "nodes.csv"
    rows = ["p1,negative,negative", "p1,macro,macro", "p2,itc,negative", "p3,micro,micro", "p3,,micro"]
    body = "\n".join(f"n{i},{row}" for i, row in enumerate(rows))
    path.write_text(f"slide_id,patient_id,label,predicted\n{body}\n", encoding="utf-8")
    found = evaluate_table(path, positive="macro")
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
    found = evaluate_table(path, positive="tumor").slides
    assert found.metrics["auc_bootstrap"].method == "bootstrap by patient"
    assert found.patients == 8
