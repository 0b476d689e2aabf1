"""Cross-validation on a small cohort of real files: every slide out of fold once, tiles made once, resume, ensemble."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.small_cohort import write_recipe
from wsi_ips.cli import app
from wsi_ips.config import load_recipe
from wsi_ips.errors import RecipeError
from wsi_ips.evaluation.classification import auc_with_interval
from wsi_ips.manifest.splits import read_splits
from wsi_ips.pipeline import run_stage
from wsi_ips.pipeline.cross_validation import cross_validate, fold_recipe


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "120"})


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The recipe of a finished cross-validation and what was printed.

    Two slides have no label and are in no fold.
    """
    folder = tmp_path_factory.mktemp("crossval")
    recipe = write_recipe(folder)
    run_stage(load_recipe(recipe), "tile")
    manifest = folder / "cohort" / "manifest.csv"
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    table.loc[table.index[-2:], "label"] = ""
    table.to_csv(manifest, index=False)
    result = invoke("cross-validate", recipe, "--folds", 3)
    assert result.exit_code == 0, result.output
    return recipe, result.output


def test_every_labelled_slide_is_tested_once_by_a_model_that_has_not_seen_it(crossed):
    recipe = load_recipe(crossed[0])
    folds = read_splits(recipe.output / "folds.json").folds
    rows = pd.read_csv(recipe.output / "out_of_fold.csv")
    assert len(rows) == 6
    assert rows["slide_id"].is_unique
    for _, row in rows.iterrows():
        assert folds[row["fold"]][row["slide_id"]] == "test"
        fold_rows = pd.read_csv(fold_recipe(recipe, row["fold"]).output / "predictions.csv")
        kept = fold_rows.set_index("slide_id").loc[row["slide_id"], "probability_tumor"]
        assert row["probability_tumor"] == kept


def test_tiles_are_made_once_and_folds_have_none(crossed):
    recipe = load_recipe(crossed[0])
    assert (recipe.output / "tiles.zarr").is_dir()
    for fold in range(3):
        assert not (recipe.output / f"fold_{fold}" / "tiles.zarr").exists()
        assert "tissue and tiles" not in crossed[1].split("fold 0")[1]


def test_slides_in_no_part_get_the_mean_of_all_models(crossed):
    recipe = load_recipe(crossed[0])
    averaged = pd.read_csv(recipe.output / "ensemble.csv").set_index("slide_id")
    assert len(averaged) == 2
    assert (averaged["models"] == 3).all()
    each = [pd.read_csv(recipe.output / f"fold_{fold}" / "predictions.csv").set_index("slide_id") for fold in range(3)]
    for name in averaged.index:
        values = [table.loc[name, "probability_tumor"] for table in each]
        assert averaged.loc[name, "probability_tumor"] == pytest.approx(np.mean(values), abs=1e-6)
        assert averaged.loc[name, "sd_probability_tumor"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)


def test_figures_are_those_of_the_out_of_fold_rows(crossed):
    recipe = load_recipe(crossed[0])
    figures = json.loads((recipe.output / "cross_validation.json").read_text())
    rows = pd.read_csv(recipe.output / "out_of_fold.csv")
    truth = (rows["label"] == "tumor").to_numpy().astype(np.int64)
    expected = auc_with_interval(truth, rows["probability_tumor"].to_numpy())
    assert figures["pooled"]["auc"]["value"] == pytest.approx(expected.value)
    known = [fold["auc"] for fold in figures["folds"] if fold["auc"] is not None]
    assert figures["auc"]["mean"] == pytest.approx(np.mean(known))
    assert f"AUC over folds: {figures['auc']['mean']:.3f}" in crossed[1]


def test_called_again_nothing_is_computed(crossed):
    recipe = load_recipe(crossed[0])
    models = sorted(recipe.output.glob("fold_*/model/model.safetensors"))
    scores = sorted(recipe.output.glob("fold_*/scores.zarr/*/zarr.json"))
    assert len(models) == 3
    before = [path.stat().st_mtime_ns for path in [*models, *scores]]
    cross_validate(recipe)
    assert [path.stat().st_mtime_ns for path in [*models, *scores]] == before


def test_other_folds_than_those_made_are_refused(crossed):
    with pytest.raises(RecipeError, match=r"folds\.json: 3 folds of an earlier call"):
        cross_validate(load_recipe(crossed[0]), folds=2)


def test_without_folds_the_way_out_is_told(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path))
    with pytest.raises(RecipeError, match="--folds"):
        cross_validate(recipe)
