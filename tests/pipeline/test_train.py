"""The command `train` with its options on real files: what it leaves behind, and what it says when it diverges."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.small_cohort import SLIDES, write_recipe
from tests.training.test_tracking import read_events
from wsi_ips.cli import app
from wsi_ips.model.checkpoint import load_checkpoint
from wsi_ips.model.checkpoint_card import read_card

WITH_VALIDATION = replace(SLIDES, split=(0.5, 0.25, 0.25))


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose slides are tiled."""
    folder = tmp_path_factory.mktemp("train")
    recipe = write_recipe(folder, slides=WITH_VALIDATION)
    result = CliRunner().invoke(app, ["tile", str(recipe)])
    assert result.exit_code == 0, result.output
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.slow
def test_an_absurd_learning_rate_stops_with_advice_and_the_checkpoint_before_predicts(tiled):
    """The first epochs end with a finite loss, a later one does not."""
    recipe = write_recipe(
        tiled,
        slides=WITH_VALIDATION,
        training={"epochs": 16, "start_steps": 2, "warmup_steps": 6, "learning_rate": 3e4},
    )
    code, said = run("train", recipe)
    assert code == 2
    assert "`training.learning_rate` is 30000: try 3e-04" in said
    best = tiled / "out" / "training" / "best"
    epochs = [json.loads(line)["epoch"] for line in (tiled / "out" / "metrics.jsonl").read_text().splitlines()]
    assert f"the best checkpoint before, of epoch {read_card(best).metrics['epoch']:.0f} " in said
    assert read_card(best).metrics["epoch"] in epochs
    assert len(epochs) < 16
    assert not (tiled / "out" / "model" / "model.json").exists()
    code, said = run("predict", recipe, "--checkpoint", best)
    assert code == 0, said
    predictions = pd.read_csv(tiled / "out" / "predictions.csv")
    assert len(predictions) == 4
    probabilities = predictions.filter(like="probability")
    assert len(probabilities.columns)
    assert probabilities.notna().all(axis=None)


@pytest.mark.slow
def test_all_options_at_once_leave_best_and_last_model_and_figures_of_each_epoch(tiled):
    training = {
        "epochs": 6,
        "start_steps": 1,
        "patience": 2,
        "select": "auc",
        "weight_average": 0.5,
        "balance": "sampling",
        "augment": {"hed": 0.05, "brightness": 0.1},
    }
    compute = {"slides_at_once": 2, "gradient_precision": "bf16"}
    code, said = run("train", write_recipe(tiled, slides=WITH_VALIDATION, training=training, compute=compute))
    assert code == 0, said
    out = tiled / "out"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    epochs = [line["epoch"] for line in lines]
    assert epochs == list(range(1, len(lines) + 1))
    assert [step for step, _ in read_events(out / "tensorboard")] == epochs
    validated = [line for line in lines if line["val_auc"] is not None]
    best = min(validated, key=lambda line: (-line["val_auc"], line["val_loss"], -line["epoch"]))
    assert read_card(out / "model").metrics["epoch"] == best["epoch"]
    assert read_card(out / "model_last").metrics["epoch"] == len(lines)
    load_checkpoint(out / "model_last")
    stopped_early = len(lines) < training["epochs"]
    assert ("`training.patience`" in said) == stopped_early
    code, said = run("train", tiled / "recipe.yaml")
    assert code == 0
    assert not re.search(r"epoch \d", said)  # it is done


@pytest.mark.slow
def test_the_warm_start_that_the_recipe_leaves_open_is_made_and_written_down(tiled):
    code, said = run("train", write_recipe(tiled, slides=WITH_VALIDATION, training={"epochs": 3}))
    assert code == 0, said
    lines = [json.loads(line) for line in (tiled / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["cost"]["tiles_per_s"] is None for line in lines] == [True, True, False]  # two thirds have no scan
    facts = read_card(tiled / "out" / "model").training["recipe"]["training"]
    assert (facts["epochs"], facts["start_epochs"]) == (3, 2)


@pytest.mark.slow
def test_a_training_that_learns_nothing_says_so_last_and_in_the_report_first(tiled):
    """With a learning rate of nothing; the commands end well, for the figures may still be looked at."""
    training = {"epochs": 4, "start_steps": 1, "learning_rate": 1e-12, "balance": "none"}
    recipe = write_recipe(tiled, slides=WITH_VALIDATION, training=training)
    code, said = run("train", recipe)
    assert code == 0, said
    assert "after 67 % of the steps with selection the loss is still that of guessing" in said
    assert "slides of `normal` are taken to hold nothing to find" in said
    assert said.rindex("warning: the training has learned nothing") > said.rindex("epoch 4: ")
    assert re.search(r"epoch 4: .*kept tiles: 0\.\d\d inside outlines, \d\.\d\d as at their last visit", said)
    code, said = run("run", recipe)
    assert code == 0, said
    assert said.rindex("warning: the training has learned nothing") > said.rindex("report ")
    assert json.loads((tiled / "out" / "summary.json").read_text())["training_warning"] in said
    page = (tiled / "out" / "report" / "index.html").read_text()
    assert page.index("the training has learned nothing") < page.index("<h1>")
    last = json.loads((tiled / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] == pytest.approx(last["guess_loss"], rel=0.05)
    assert 0 <= last["kept_in_outlines"] <= 1


def test_a_background_is_told_by_its_name_and_kept_on_the_card(tiled):
    code, said = run("train", write_recipe(tiled, slides=WITH_VALIDATION, labels={"background": False}))
    assert code == 0, said
    assert "nothing to find" not in said  # it is stated
    (task,) = read_card(tiled / "out" / "model").tasks
    assert task.background is False
