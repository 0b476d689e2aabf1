"""Evaluation of a run on real files, and of detections of another tool on the same slides."""

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
from wsi_ips.evaluation.classification import auc_with_interval
from wsi_ips.evaluation.froc import peak_detections
from wsi_ips.evaluation.localisation import LEAST_PEAK
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.pipeline import Run
from wsi_ips.pipeline.evaluate_run import evaluate_run, score_raster
from wsi_ips.pipeline.external_predictions import TableQuestion, evaluate_files

TUMOR = TableQuestion("tumor")


@pytest.fixture(scope="module")
def run(done: Path) -> Run:  # noqa: F811
    return Run.open(recipe_of(done))


def test_slide_figures_are_those_of_the_predictions(done, run):  # noqa: F811
    table = pd.read_csv(done / "out" / "predictions.csv")
    expected = auc_with_interval((table["label"] == "tumor").astype(int), table["probability_tumor"])
    found = evaluate_run(run.predictions, by=["label"])
    assert found.slides.metrics["auc"].value == pytest.approx(expected.value)
    groups = {(g.name, g.value): (g.positives, g.negatives) for g in found.slides.subgroups}
    assert groups == {("label", "normal"): (0, 2), ("label", "tumor"): (2, 0), ("largest lesion", "micro"): (2, 2)}
    assert found.tasks == ()
    assert any("no validation slides" in note for note in found.notes)


def test_lesions_tiles_and_false_alarms_are_those_of_the_annotated_slides(done, run):  # noqa: F811
    found = evaluate_run(run.predictions, threshold=0.4).localisation
    test = [r for r in run.slides.records if r.split == "test"]
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
    assert 1 <= found.effective_tiles <= max(len(run.slides.index(r)) for r in test)
    alarms = []
    for record in test:
        entry, index = read_scores(run.folder.scores, record.slide_id), run.slides.index(record)
        if record.annotation is None:
            side_mm = 64 * 2.0 / 1000
            alarms.append(index.tissue_fraction[entry.positive_probability >= 0.4].sum() * side_mm**2)
    assert found.false_alarm_mm2 == pytest.approx(np.mean(alarms), rel=1e-5)
    assert 0 <= found.selection_recall <= 1


def test_slides_whose_tumour_may_have_been_dropped_are_not_measured(done, run, tmp_path, monkeypatch):  # noqa: F811
    annotated = [r for r in run.slides.records if r.split == "test" and r.annotation]
    text = annotated[0].annotation.read_text()
    for group, said in (("Odd", "odd ("), ("Stroma", "no tumour in its outlines")):
        path = tmp_path / f"{group}.xml"
        path.write_text(text.replace('PartOfGroup="Tumor"', f'PartOfGroup="{group}"'))
        records = [r.model_copy(update={"annotation": path}) if r == annotated[0] else r for r in run.slides.records]
        changed = replace(run.predictions, slides=replace(run.slides, records=tuple(records)))
        found = evaluate_run(changed)
        assert found.localisation.lesions_by_peaks.slides == 3
        assert any(annotated[0].slide_id in note and said in note for note in found.notes)


def test_a_perfect_map_finds_every_lesion_and_a_turned_one_none(done, run, monkeypatch):  # noqa: F811
    """The truth in place of the scores, through the same way: grid, peaks, mask, rule."""

    def scores_of(root: Path, slide_id: str, *, turned: bool):
        entry = read_scores(root, slide_id)
        truth = run.slides.index(next(r for r in run.slides.records if r.slide_id == slide_id)).tumour_fraction
        right = np.zeros(len(entry.kept) if truth is None else len(truth)) if truth is None else truth
        if truth is None:
            right = np.zeros(len(entry.tile_probability), np.float32)
        table = np.stack([1 - right, right], 1)
        return replace(entry, tile_probability=(table[::-1] if turned else table).astype(np.float32))

    monkeypatch.setattr(
        "wsi_ips.pipeline.evaluate_run.read_scores", lambda root, name: scores_of(root, name, turned=False)
    )
    found = evaluate_run(run.predictions).localisation
    assert found.lesions_by_peaks.score == found.lesions_by_components.score == 1
    assert found.pointing == 1
    assert found.false_alarm_mm2 == 0
    monkeypatch.setattr(
        "wsi_ips.pipeline.evaluate_run.read_scores", lambda root, name: scores_of(root, name, turned=True)
    )
    assert evaluate_run(run.predictions).localisation.lesions_by_components.at(0.25) < 1


def test_where_the_map_knows_more_than_the_decision_it_is_told(done, run, monkeypatch):  # noqa: F811
    """The decision turned round; the map is the truth."""
    table = pd.read_csv(done / "out" / "predictions.csv").set_index("slide_id")

    def scores_of(root: Path, slide_id: str, *, turned: bool):
        entry = read_scores(root, slide_id)
        assert table.loc[slide_id, "highest_tiles"] == pytest.approx(entry.highest_tiles, abs=1e-6)
        truth = run.slides.index(next(r for r in run.slides.records if r.slide_id == slide_id)).tumour_fraction
        right = np.zeros(len(entry.tile_probability)) if truth is None else truth
        called = float((truth is None) == turned)
        return replace(
            entry,
            tile_probability=np.stack([1 - right, right], 1).astype(np.float32),
            probabilities=((1 - called, called),),
        )

    for turned in (False, True):
        monkeypatch.setattr(
            "wsi_ips.pipeline.evaluate_run.read_scores",
            lambda root, name, turned=turned: scores_of(root, name, turned=turned),
        )
        told = [note for note in evaluate_run(run.predictions).notes if "highest tiles" in note]
        assert len(told) == turned
        assert all("AUC 1.000" in note and "(0.000)" in note for note in told)


def test_a_column_that_is_not_there_and_a_split_without_slides_are_refused(run):
    with pytest.raises(ManifestError, match="column `centre` is missing"):
        evaluate_run(run.predictions, by=["centre"])
    with pytest.raises(EvaluationError, match="split `val`"):
        evaluate_run(run.predictions, split="val")


def test_the_command_prints_and_writes_what_it_found(done, tmp_path):  # noqa: F811
    result = CliRunner().invoke(app, ["evaluate", str(done / "recipe.yaml"), "--by", "label"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "FROC, peaks" in result.output
    assert "label = tumor" in result.output
    stored = json.loads((done / "out" / "evaluation.json").read_text())
    assert stored["slides"]["metrics"]["auc"]["positives"] == 2
    assert stored["localisation"]["lesions_by_peaks"]["sensitivity"][0] == 0
    table = done / "out" / "predictions.csv"
    result = CliRunner().invoke(app, ["score", "--predictions", str(table), "--output", str(tmp_path / "e.json")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "e.json").read_text())["localisation"] is None
    assert CliRunner().invoke(app, ["score"]).exit_code == 2


def test_without_a_background_class_only_outlines_of_the_shown_class_are_measured(done):  # noqa: F811
    """A slide of the other class is not free of tumour, so it has no false alarms."""
    with Run.open(recipe_of(done, **{"labels.background": False})) as run:
        found = evaluate_run(run.predictions)
    assert (found.localisation.tumour_slides, found.localisation.other_slides) == (2, 0)
    assert found.localisation.false_alarm_mm2 is None
    assert any("2 slides without outlines of `tumor` are not in the lesion and tile metrics" in n for n in found.notes)


def test_slides_that_are_in_no_figure_are_named_with_their_state(done, tmp_path):  # noqa: F811
    folder = tmp_path / "copy"
    shutil.copytree(done, folder)
    with Run.open(recipe_of(folder)) as run:
        gone = next(r for r in run.slides.records if r.split == "test" and r.annotation is None)
        run.states.update(gone.slide_id, state="failed", stage="tile", reason="damaged")
        found = evaluate_run(run.predictions)
    assert found.localisation.other_slides == 1
    assert "1 of 4 slides of split `test` are not measured: 1 failed" in found.notes


def test_an_annotation_that_cannot_be_read_makes_no_figure_better(done, tmp_path):  # noqa: F811
    folder = tmp_path / "copy"
    shutil.copytree(done, folder)
    with Run.open(recipe_of(folder)) as run:
        broken = next(r for r in run.slides.records if r.split == "test" and r.annotation)
        broken.annotation.write_text("<ASAP", encoding="utf-8")
        found = evaluate_run(run.predictions)
    assert found.localisation is None
    assert found.slides is not None
    assert any(f"without slide {broken.slide_id} its lesions would not count" in note for note in found.notes)


@pytest.mark.parametrize("state", ["empty", "failed"])
def test_lesions_of_a_slide_without_a_map_count_as_missed(done, run, tmp_path, state):  # noqa: F811
    folder = tmp_path / "copy"
    shutil.copytree(done, folder)
    whole = evaluate_run(run.predictions).localisation.lesions_by_peaks
    with Run.open(recipe_of(folder)) as copied:
        lost = next(r for r in copied.slides.records if r.split == "test" and r.annotation)
        copied.states.update(lost.slide_id, state=state, stage="predict")
        shutil.rmtree(folder / "out" / "scores.zarr" / lost.slide_id)
        found = evaluate_run(copied.predictions)
    curve = found.localisation.lesions_by_peaks
    assert (curve.lesions, curve.slides) == (whole.lesions, whole.slides)
    assert curve.sensitivity[-1] < whole.sensitivity[-1]
    assert any("lesions of slides without a map count as missed" in note for note in found.notes)


def write_detections(run: Run, folder: Path, *, header: bool) -> None:
    """What the run's own map shows, as anybody would hand it in."""
    folder.mkdir()
    for record in run.slides.records:
        if record.split != "test":
            continue
        entry, index = read_scores(run.folder.scores, record.slide_id), run.slides.index(record)
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
    own = evaluate_run(run.predictions).localisation.lesions_by_peaks
    predictions = done / "out" / "predictions.csv"
    found = evaluate_files(TUMOR, predictions=predictions, manifest=manifest, detections=tmp_path / "found")
    theirs = found.localisation.lesions_given
    assert (theirs.score, theirs.lesions, theirs.slides) == (pytest.approx(own.score), own.lesions, own.slides)
    assert theirs.interval == pytest.approx(own.interval)
    assert found.slides.metrics["auc"].positives == 2


def test_slides_without_detections_count_and_are_told(done, run, tmp_path):  # noqa: F811
    write_detections(run, tmp_path / "found", header=True)
    test = [r for r in run.slides.records if r.split == "test"]
    (tmp_path / "found" / f"{test[0].slide_id}.csv").unlink()
    (tmp_path / "found" / "other.csv").write_text("0.5,1,1\n", encoding="utf-8")
    manifest = done / "cohort" / "manifest.csv"
    found = evaluate_files(TUMOR, manifest=manifest, detections=tmp_path / "found")
    assert found.localisation.lesions_given.slides == 4
    assert any(test[0].slide_id in note and "without detections" in note for note in found.notes)
    assert any("other" in note for note in found.notes)
    (tmp_path / "found" / f"{test[1].slide_id}.csv").write_text("0.5,1,1\n\n0.7,here,3\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match=rf"{test[1].slide_id}.csv, row 3: `0.7,here,3`"):
        evaluate_files(TUMOR, manifest=manifest, detections=tmp_path / "found")
    with pytest.raises(EvaluationError, match="--manifest"):
        evaluate_files(TUMOR, detections=tmp_path / "found")
    with pytest.raises(EvaluationError, match="no folder"):
        evaluate_files(TUMOR, manifest=manifest, detections=tmp_path / "nowhere")


def test_a_detection_off_its_slide_costs_no_lesion(done, run, tmp_path):  # noqa: F811
    write_detections(run, tmp_path / "found", header=True)
    manifest = done / "cohort" / "manifest.csv"
    before = evaluate_files(TUMOR, manifest=manifest, detections=tmp_path / "found").localisation.lesions_given
    annotated = next(r for r in run.slides.records if r.split == "test" and r.annotation)
    with (tmp_path / "found" / f"{annotated.slide_id}.csv").open("a", encoding="utf-8") as file:
        file.write("\n0.01,9000000,1\n")
    found = evaluate_files(TUMOR, manifest=manifest, detections=tmp_path / "found")
    after = found.localisation.lesions_given
    assert (after.lesions, after.slides, after.score) == (before.lesions, before.slides, before.score)
    assert after.false_positives[-1] == before.false_positives[-1] + 1 / after.slides
    assert any(f"{annotated.slide_id} (1 of " in note and "off the slide" in note for note in found.notes)


@pytest.mark.parametrize("damage", ["no slide", "a mask as annotation"])
def test_a_slide_that_cannot_be_measured_is_refused_with_its_lesions(done, run, tmp_path, damage):  # noqa: F811
    write_detections(run, tmp_path / "found", header=True)
    annotated = next(r for r in run.slides.records if r.split == "test" and r.annotation)
    shutil.copytree(done / "cohort", tmp_path / "cohort")
    if damage == "no slide":
        (tmp_path / "cohort" / "slides" / Path(annotated.path).name).unlink()
    else:
        outlines = tmp_path / "cohort" / "annotations" / Path(annotated.annotation).name
        shutil.copy(annotated.path, outlines)
    manifest = tmp_path / "cohort" / "manifest.csv"
    with pytest.raises(EvaluationError, match=rf"1 of 4 slides cannot be measured(.|\n)*slide {annotated.slide_id}: "):
        evaluate_files(TUMOR, manifest=manifest, detections=tmp_path / "found")


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
            fraction = run.slides.index(next(r for r in run.slides.records if r.slide_id == slide_id)).tumour_fraction
            right = np.zeros(len(entry.tile_probability)) if fraction is None else fraction
            whole = float(fraction is not None)
            map_of_truth = np.stack([1 - right, right], 1).astype(np.float32)
            return replace(entry, tile_probability=map_of_truth, probabilities=((1 - whole, whole),))

        monkeypatch.setattr("wsi_ips.pipeline.evaluate_run.read_scores", truth)
        found = evaluate_run(run.predictions, nodes="node").patients
    assert {(p.stage, p.predicted) for p in found.patients} == {("pN0", "pN0"), ("pN1mi", "pN1mi")}
    assert found.kappa == 1
    with pytest.raises(ManifestError, match="column `nodes` is missing"), Run.open(recipe_of(folder)) as run:
        evaluate_run(run.predictions, nodes="nodes")
