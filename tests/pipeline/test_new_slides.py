"""`wsi-ips predict` without a recipe: files, folders and manifests, with nothing but a bundle."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from tests.faults.slides import RECIPE, write_cohort, write_good
from tests.pipeline.bundles import write_bundle
from wsi_ips.cli import app
from wsi_ips.config import load_recipe
from wsi_ips.evaluation.calibration import Calibration, TaskCalibration, write_calibration
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint_card import checkpoint_fingerprint, read_card, write_card
from wsi_ips.pipeline import Run
from wsi_ips.pipeline.new_slides import new_slides

HERE = ("--set", "compute.workers=0")


def invoked(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120"})


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


def test_a_folder_with_a_broken_file_and_a_real_slide(tmp_path, bundle, real_data):
    """Every slide ends in a row; the run folder takes the other commands; a second call has nothing to do."""
    slides = tmp_path / "slides"
    slides.mkdir()
    write_good(slides, 2)
    shutil.copy(real_data / "slides" / "CMU-1-Small-Region.svs", slides)
    shutil.copy(real_data / "malformed" / "broken.svs", slides)
    out = tmp_path / "out"
    call = ("predict", slides, "--checkpoint", bundle, "--output", out, *HERE)
    result = invoked(*call)
    assert result.exit_code == 3, result.output
    table = pd.read_csv(out / "predictions.csv").set_index("slide_id")
    assert set(table.index) == {"CMU-1-Small-Region", "good_00", "good_01"}
    for name, row in table.iterrows():
        assert f"{row['predicted']} " in result.output
        scores = read_scores(out / "scores.zarr", str(name))
        assert row["tiles"] == len(scores.attention_logits) > 4
        assert row["raw_probability_tumor"] == pytest.approx(scores.probabilities[0][1], abs=1e-6)
        assert (out / "heatmaps" / f"{name}_probability.png").exists()
    assert "broken.svs: no reader opens it" in result.output
    assert "the model has no calibration" in result.output
    before = {p: p.stat().st_mtime_ns for p in (out / "scores.zarr").rglob("*") if p.is_file()}
    assert invoked(*call, "--no-heatmaps").exit_code == 3
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert "1 failed" in invoked("status", out).output
    assert "no reader opens it" in invoked("status", out / "recipe.yaml", "--explain", "broken").output
    verified = invoked("status", out, "--verify", *HERE)
    assert verified.exit_code == 0, verified.output
    assert "3 predictions computed again" in verified.output
    mended = slides / "broken.svs"
    shutil.copy(slides / "good_00.tif", mended)
    assert invoked("run", out, "--retry", *HERE).exit_code == 0
    assert invoked("predict", mended, "--checkpoint", bundle, "-o", out, "--no-heatmaps").exit_code == 0
    assert len(pd.read_csv(out / "predictions.csv")) == 4
    shown = Run.open(load_recipe(out))
    assert shown.recipe.tiles.patch_px == 64
    assert json.loads((out / "run.json").read_text())["recipe"]["tiles"]["mpp"] == 0.5


def test_one_slide_needs_no_output_and_another_is_added_to_it(tmp_path, bundle, monkeypatch):
    write_good(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    assert invoked("predict", "good_00.tif", "--checkpoint", "bundle", "--no-heatmaps", *HERE).exit_code == 0
    result = invoked("predict", "good_01.tif", "--checkpoint", "bundle", *HERE)
    assert result.exit_code == 0, result.output
    assert "good_00" not in result.output
    out = tmp_path / "runs" / "predicted-untrained-00000000"
    assert pd.read_csv(out / "predictions.csv")["slide_id"].tolist() == ["good_00", "good_01"]
    assert [p.name for p in (out / "heatmaps").glob("*_probability.png")] == ["good_01_probability.png"]


def test_the_same_slide_by_recipe_and_by_bundle_has_the_same_scores(tmp_path, bundle):
    write_cohort(tmp_path, write_good(tmp_path, 1), workers=0)
    by_recipe = invoked("predict", tmp_path / "recipe.yaml", "--checkpoint", bundle)
    assert by_recipe.exit_code == 0, by_recipe.output
    assert not (tmp_path / "out" / "heatmaps").exists()
    slide = tmp_path / "good_00.tif"
    invoked("predict", slide, "--checkpoint", bundle, "-o", tmp_path / "other", "--no-heatmaps", *HERE)
    first, second = (read_scores(tmp_path / name / "scores.zarr", "good_00") for name in ("out", "other"))
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(first.attention_logits, second.attention_logits)
    assert first.probabilities == second.probabilities


def test_a_labelled_manifest_is_predicted_and_evaluated(tmp_path, bundle):
    names = write_good(tmp_path, 4)
    table = pd.DataFrame({"slide_id": ["p", "q", "r", "s"], "path": names, "centre": ["A", "A", "B", "B"]})
    table["label"] = ["tumor", "normal", "tumor", "unclear"]
    table.to_csv(tmp_path / "some.csv", index=False)
    out = tmp_path / "out"
    result = invoked("predict", tmp_path / "some.csv", "--checkpoint", bundle, "-o", out, "--no-heatmaps", *HERE)
    assert result.exit_code == 0, result.output
    assert "slide s, column `label`: `unclear` is not a class" in result.output
    assert "3 labelled slides without a split: they count as test slides" in result.output
    predictions = pd.read_csv(out / "predictions.csv", keep_default_na=False)
    assert predictions["label"].tolist() == ["tumor", "normal", "tumor", ""]
    evaluated = invoked("evaluate", out, "--by", "centre")
    assert evaluated.exit_code == 0, evaluated.output
    assert "centre = A" in evaluated.output


def test_temperature_threshold_and_further_tasks_come_from_the_bundle(tmp_path):
    tasks = (Task("label", ("normal", "tumor")), Task("grade", ("a", "b", "c")), Task("signs", ("x", "y"), "multi"))
    bundle = write_bundle(tmp_path / "bundle", tasks=tasks)
    frozen = Calibration(
        (
            TaskCalibration("label", 30.0, (0.999,), 40),
            TaskCalibration("grade", 30.0, (), 40),
            TaskCalibration("signs", 30.0, (0.0, 1.0), 40),
        )
    )
    write_calibration(bundle, frozen, checkpoint_fingerprint(bundle))
    write_good(tmp_path, 1)
    out = tmp_path / "out"
    result = invoked("predict", tmp_path / "good_00.tif", "--checkpoint", bundle, "-o", out, *HERE)
    assert result.exit_code == 0, result.output
    row = pd.read_csv(out / "predictions.csv").iloc[0]
    raw = read_scores(out / "scores.zarr", "good_00").probabilities
    scaled = np.maximum(raw[1], 1e-7) ** (1 / 30)
    grades = row[[f"grade_probability_{c}" for c in "abc"]].astype(float)
    np.testing.assert_allclose(grades, scaled / scaled.sum(), atol=1e-5)
    assert row["predicted"] == "normal"
    assert row["signs_predicted"] == "x"
    assert "temperature 30, from 40 validation slides" in result.output
    assert "`tumor` is called at a probability of 0.999 or more" in result.output
    facts = json.loads((out / "heatmaps" / "good_00_probability.json").read_text())
    assert facts["slide_probability"] == pytest.approx(row["probability_tumor"], abs=1e-5)
    write_calibration(bundle, Calibration.default(tasks), checkpoint_fingerprint(bundle))
    again = invoked("predict", tmp_path / "good_00.tif", "--checkpoint", bundle, "-o", out, *HERE)
    assert "prediction:" not in again.output  # no pixel is read anew, the pictures are drawn anew
    facts = json.loads((out / "heatmaps" / "good_00_probability.json").read_text())
    assert facts["slide_probability"] == pytest.approx(raw[0][1], abs=1e-5)


@pytest.mark.parametrize(
    ("task", "stated"),
    [
        (Task("label", ("normal", "tumor"), background=True), None),
        (Task("label", ("normal", "tumor"), background=False), False),
        (Task("label", ("luad", "lusc"), background=False), None),
        (Task("label", ("luad", "lusc"), background=True), True),
        (Task("label", ("luad", "lusc")), None),  # a card of an earlier version
    ],
)
def test_whether_there_is_a_background_class_comes_from_the_bundle(tmp_path, task, stated):
    write_good(tmp_path, 1)
    bundle = write_bundle(tmp_path / "bundle", tasks=(task,))
    recipe = new_slides([str(tmp_path / "good_00.tif")], bundle, tmp_path / "out").recipe
    assert recipe.labels.background is stated
    assert recipe.labels.tasks[0].has_background == task.has_background


def test_a_scale_given_by_hand_is_used(tmp_path, bundle):
    write_good(tmp_path, 1)
    out = tmp_path / "out"
    call = ("predict", tmp_path / "good_00.tif", "--checkpoint", bundle, "-o", out, "--no-heatmaps", *HERE)
    assert invoked(*call, "--mpp", "0.3").exit_code == 0
    with Run.open(load_recipe(out)) as run:
        assert run.slides.index(run.slides.records[0]).mpp == (0.3, 0.3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("good_00.tif",), "name a model with --checkpoint"),
        (("good_00.tif", "--checkpoint", "nothing"), "there is none"),
        (("gone.svs", "--checkpoint", "bundle"), "gone.svs: no such slide, folder or manifest"),
        (("good_00.tif", "--checkpoint", "bundle", "--set", "tiles.mpp=1"), "tiles.mpp: is pinned by the model"),
        (("good_00.tif", "--checkpoint", "bundle", "-o", "twin"), "already contains something else"),
        (("good_00.tif", "--checkpoint", "bundle", "-o", "."), "is the folder of another run"),
        (("good_00.tif", "twin/good_00.tif", "--checkpoint", "bundle", "-o", "out"), "have the same name"),
        (("good_00.tif", "--checkpoint", "old", "-o", "out"), "its card pins neither tissue nor tiles"),
        (("good_00.tif", "--checkpoint", "imported", "-o", "out"), "tiles of another tool"),
        (("recipe.yaml", "--mpp", "0.5"), "column `mpp` of the manifest"),
    ],
)
def test_what_cannot_be_done_is_said_with_exit_code_2(tmp_path, bundle, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    write_cohort(tmp_path, write_good(tmp_path, 1))
    (tmp_path / "twin").mkdir()
    write_good(tmp_path / "twin", 1)
    card = read_card(bundle)
    for name, preparation in (("old", None), ("imported", {**card.preparation, "tiles_from": "tiles of another tool"})):
        shutil.copytree(bundle, tmp_path / name)
        write_card(tmp_path / name, replace(card, preparation=preparation))
    result = invoked("predict", *arguments)
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.output.split())
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "out" / "scores.zarr").exists()


def test_predictions_of_two_models_do_not_mix(tmp_path, bundle):
    write_good(tmp_path, 1)
    slide, out = tmp_path / "good_00.tif", tmp_path / "out"
    invoked("predict", slide, "--checkpoint", bundle, "-o", out, "--no-heatmaps", *HERE)
    other = write_bundle(tmp_path / "other", seed=1)
    result = invoked("predict", slide, "--checkpoint", other, "-o", out)
    assert result.exit_code == 2
    assert "another model or of other settings (name differ)" in " ".join(result.output.split())
    moved = shutil.move(bundle, tmp_path / "moved")
    assert invoked("predict", slide, "--checkpoint", moved, "-o", out, "--no-heatmaps").exit_code == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tissue": {"mpp": 4.0, "min_area_um2": 100.0}}, r"`tissue.mpp` 2.0 \(the recipe: 4.0\)"),
        ({"tiles": {"mpp": 0.5, "patch_px": 64, "stride_px": 32}}, r"`tiles.stride_px` 64 \(the recipe: 32\)"),
        ({"tiles": {"mpp": 0.5, "patch_px": 64, "exclude_flags": []}}, r"`tiles.exclude_flags` .*the recipe: \(none\)"),
        ({"tiles": {"mpp": 1.0, "patch_px": 64}}, "64 px at 0.5 µm/px"),
    ],
)
def test_a_recipe_that_shows_the_model_other_pixels_is_refused(tmp_path, bundle, change, says):
    write_cohort(tmp_path, write_good(tmp_path, 1))
    path: Path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | change))
    result = invoked("predict", path, "--checkpoint", bundle)
    assert result.exit_code == 2, result.output
    assert re.search(says, " ".join(result.output.split()))
    assert not (tmp_path / "out" / "scores.zarr").exists()


def test_files_of_one_dicom_series_are_one_slide(tmp_path, bundle, real_data):
    found = new_slides([str(real_data / "slides" / "dicom_boxes")], bundle, tmp_path / "out")
    assert found.names == ("boxes_0",)
    assert found.notes == ("boxes_1: of the same DICOM series as boxes_0, so part of that slide",)
