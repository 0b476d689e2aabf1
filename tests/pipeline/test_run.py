"""The whole way on a small cohort of real files: results, states, resume, and what bad input ends as."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.small_cohort import write_recipe
from wsi_ips.cli import app
from wsi_ips.config import Recipe, load_recipe
from wsi_ips.errors import CheckpointError, ManifestError, TrainingError
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.model.selection import selection_score
from wsi_ips.pipeline import Run, run_pipeline, run_stage


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("run")
    outcome = run_pipeline(load_recipe(write_recipe(folder)))
    assert outcome.failed == 0
    return folder


@pytest.fixture
def finished(done: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(done, folder)
    return folder


def recipe_of(folder: Path, **overrides: object) -> Recipe:
    return load_recipe(folder / "recipe.yaml", overrides)


def stamps(folder: Path) -> dict[str, int]:
    """When each result was written."""
    names = ("tiles.zarr", "model", "scores.zarr", "heatmaps", "report")
    return {n: max(f.stat().st_mtime_ns for f in (folder / "out" / n).rglob("*") if f.is_file()) for n in names}


def test_all_outputs_are_there_and_agree(done):
    out = done / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["slides_ok"] == summary["slides"] == 8
    assert 0 <= summary["tile_auc_probability"] <= 1
    assert summary["lesions_lost"] == 0 < summary["lesions"]
    assert summary["tile_recall"] > 0.9
    predictions = pd.read_csv(out / "predictions.csv")
    assert len(predictions) == 4
    assert (predictions["split"] == "test").all()
    np.testing.assert_allclose(predictions[["probability_normal", "probability_tumor"]].sum(axis=1), 1, atol=1e-5)
    states = pd.read_csv(out / "slides.csv")
    for row in predictions.itertuples():
        scores = read_scores(out / "scores.zarr", row.slide_id)
        assert row.tiles == len(scores.attention_logits) == len(scores.tile_probability)
        assert row.tiles == states.set_index("slide_id").loc[row.slide_id, "tiles"]
        best = np.argsort(-selection_score(scores.attention_logits), kind="stable")[:4]
        assert scores.kept.tolist() == best.tolist()
        for kind in ("probability", "attention"):
            facts = json.loads((out / "heatmaps" / f"{row.slide_id}_{kind}.json").read_text())
            assert facts["slide_probability"] == pytest.approx(row.probability_tumor, abs=1e-5)
            assert facts["alignment"] > 0.8
    html = (out / "report" / "index.html").read_text()
    assert all(name in html for name in predictions["slide_id"])


def test_a_second_run_computes_nothing(finished):
    run_pipeline(recipe_of(finished))
    before = stamps(finished)
    outcome = run_pipeline(recipe_of(finished))
    assert not outcome.worked
    assert stamps(finished) == before
    assert outcome.summary["test_auc"] is not None


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"heatmap.mpp": 5.0}, {"heatmaps", "report"}),
        ({"training.learning_rate": 0.0002}, {"model", "scores.zarr", "heatmaps", "report"}),
        ({"tiles.min_tissue_fraction": 0.4}, {"tiles.zarr", "model", "scores.zarr", "heatmaps", "report"}),
        ({"compute.chunk_size": 17, "compute.readers": 1}, set()),
    ],
)
def test_a_changed_section_recomputes_exactly_what_depends_on_it(finished, change, redone):
    before = stamps(finished)
    run_pipeline(recipe_of(finished, **change))
    after = stamps(finished)
    assert {name for name in before if before[name] != after[name]} == redone


def test_a_moved_folder_is_still_up_to_date(finished):
    before = stamps(finished)
    outcome = run_pipeline(recipe_of(finished))
    assert not outcome.worked
    assert stamps(finished) == before


def edit_manifest(folder: Path, **columns: dict[str, object]) -> pd.DataFrame:
    """Change cells of the manifest: column -> {slide_id: value}."""
    path = folder / "cohort" / "manifest.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("slide_id", drop=False)
    for column, cells in columns.items():
        for slide_id, value in cells.items():
            table.loc[slide_id, column] = value
    table.to_csv(path, index=False)
    return table


def test_bad_slides_fail_with_reasons_and_the_rest_finishes(finished):
    table = edit_manifest(finished)
    test = table[table["split"] == "test"]["slide_id"].tolist()
    slides = finished / "cohort" / "slides"
    (slides / f"{test[0]}.svs").unlink()
    (slides / f"{test[1]}.svs").write_bytes(b"no slide at all")
    outcome = run_pipeline(recipe_of(finished))
    assert outcome.failed == 2
    states = {state.slide_id: state for state in outcome.states}
    assert "no such file" in states[test[0]].reason
    assert "no reader opens it" in states[test[1]].reason
    assert (finished / "out" / "logs" / f"{test[1]}.txt").exists()
    predictions = pd.read_csv(finished / "out" / "predictions.csv")
    assert sorted(predictions["slide_id"]) == sorted(test[2:])
    html = (finished / "out" / "report" / "index.html").read_text()
    assert "no such file" in html


def test_a_slide_that_opens_and_cannot_be_read_fails_and_recovers(finished):
    table = edit_manifest(finished)
    name = table[table["split"] == "test"]["slide_id"].iloc[0]
    path = finished / "cohort" / "slides" / f"{name}.svs"
    whole = path.read_bytes()
    run_stage(recipe_of(finished), "tile")
    # The tiles' JPEG streams are spoiled, header, directories and size stay: the slide opens, reading fails.
    spoiled = bytearray(whole)
    spoiled[16:-20_000] = bytes(len(whole) - 20_016)
    path.write_bytes(bytes(spoiled))
    outcome = run_pipeline(recipe_of(finished))
    states = {state.slide_id: state for state in outcome.states}
    assert states[name].state == "failed"
    assert name in states[name].reason
    path.write_bytes(whole)
    recovered = run_pipeline(recipe_of(finished))
    assert recovered.failed == 0


def test_a_training_slide_that_cannot_be_read_is_dropped_and_named(finished):
    table = edit_manifest(finished)
    name = table[(table["split"] == "train") & (table["label"] == "normal")]["slide_id"].iloc[0]
    (finished / "cohort" / "slides" / f"{name}.svs").write_bytes(b"broken")
    with pytest.raises(TrainingError, match=rf"1 of 4 training slides \(25%\).*{name}"):
        run_pipeline(recipe_of(finished))
    outcome = run_pipeline(recipe_of(finished, **{"training.max_missing_share": 0.3}))
    assert outcome.failed == 1


def test_a_slide_without_tissue_is_empty_not_failed(finished):
    table = edit_manifest(finished)
    bare = {"tissue.method": "otsu", "tissue.min_saturation": 0.99, "tiles.accept_lost_tumour": True}
    run = run_stage(recipe_of(finished, **bare), "tile")
    assert {state.state for state in run.states} == {"empty"}
    assert all("no tissue found" in state.reason for state in run.states)
    assert len(table) == 8


def test_one_class_only_in_training_is_refused(finished):
    table = edit_manifest(finished)
    cells = dict.fromkeys(table[table["split"] == "train"]["slide_id"], "tumor")
    edit_manifest(finished, label=cells)
    with pytest.raises(TrainingError, match="all alike"):
        run_pipeline(recipe_of(finished))


def test_a_label_that_is_no_class_is_refused_by_name(finished):
    table = edit_manifest(finished)
    edit_manifest(finished, label={table["slide_id"].iloc[0]: "maybe"})
    with pytest.raises(ManifestError, match=r"`maybe`.*labels.classes"):
        run_pipeline(recipe_of(finished))


def test_a_checkpoint_of_other_classes_is_refused(finished):
    edit_manifest(finished, label=dict.fromkeys(edit_manifest(finished)["slide_id"], ""))
    overrides = {"predict.checkpoint": "out/model", "labels.classes": ["benign", "malignant"]}
    with pytest.raises(CheckpointError, match=r"normal, tumor.*benign, malignant"):
        run_pipeline(recipe_of(finished, **overrides))


def test_a_checkpoint_of_another_scale_is_refused(finished):
    with pytest.raises(CheckpointError, match=r"64 px at 2.0 µm/px.*tiles.mpp"):
        run_stage(recipe_of(finished, **{"predict.checkpoint": "out/model", "tiles.mpp": 3.0}), "predict")


def test_predict_without_a_checkpoint_says_what_to_run(finished):
    shutil.rmtree(finished / "out" / "model")
    with pytest.raises(CheckpointError, match="wsi-ips train"):
        run_stage(recipe_of(finished), "predict")


def test_a_model_from_elsewhere_predicts_named_slides(finished, tmp_path):
    table = edit_manifest(finished)
    train = table[table["split"] == "train"]["slide_id"].iloc[0]
    overrides = {"predict.checkpoint": str(finished / "out" / "model"), "output": str(tmp_path / "other")}
    run = run_stage(recipe_of(finished, **overrides), "predict", slides=[train])
    assert pd.read_csv(run.folder.predictions)["slide_id"].tolist() == [train]
    where = [str(finished / "recipe.yaml"), train, "--set", f"output={tmp_path / 'other'}"]
    drawn = CliRunner().invoke(app, ["heatmap", *where, "--checkpoint", str(finished / "out" / "model")])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "other" / "heatmaps" / f"{train}_probability.png").exists()
    with pytest.raises(ManifestError, match="nobody"):
        run_stage(recipe_of(finished, **overrides), "predict", slides=["nobody"])


def test_hdf5_holds_the_same_index(finished):
    first = Run.open(recipe_of(finished))
    second = run_stage(recipe_of(finished, **{"tiles.store": "hdf5"}), "tile")
    # The other store is empty at first, so all is tiled again, to the same rows.
    for record in first.slides.records:
        np.testing.assert_array_equal(first.slides.index(record).boxes_px0, second.slides.index(record).boxes_px0)
        assert first.slides.index(record).fingerprint == second.slides.index(record).fingerprint
