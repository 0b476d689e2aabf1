"""`wsi-ips train --encoder-only` learns from the training slides, labelled or not, and writes usable weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import wsi_ips
from tests.small_cohort import SLIDES, write_recipe
from wsi_ips.cli import app
from wsi_ips.config import load_recipe
from wsi_ips.model.encoder_families import build_encoder
from wsi_ips.pipeline import encoder_stage
from wsi_ips.training.model_building import plan_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose first training slide has no label."""
    made = tmp_path_factory.mktemp("encoder")
    write_recipe(made, slides=replace(SLIDES, split=(0.5, 0.25, 0.25)))
    manifest = made / "cohort" / "manifest.csv"
    rows = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    rows.loc[rows["split"] == "train", "label"] = ["", *rows.loc[rows["split"] == "train", "label"][1:]]
    rows.to_csv(manifest, index=False)
    return made


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join(result.output.split())


def learned_from(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Slides whose pixels are read, filled while a command runs."""
    seen: set[str] = set()
    plain = encoder_stage.EncoderTrainer.fit

    def fit(self, slides, **options):
        seen.update(slide.slide_id for slide in slides)
        return plain(self, slides, **options)

    monkeypatch.setattr(encoder_stage.EncoderTrainer, "fit", fit)
    return seen


def test_it_learns_from_training_slides_only_and_the_weights_are_those_of_the_recipe(folder, tmp_path, monkeypatch):
    seen, path = learned_from(monkeypatch), tmp_path / "encoder.safetensors"
    code, said = run("train", folder / "recipe.yaml", "--encoder-only", path)
    assert code == 0, said
    rows = pd.read_csv(folder / "cohort" / "manifest.csv", dtype=str)
    assert seen == set(rows["slide_id"][rows["split"] == "train"])
    assert not path.with_suffix(".state").exists()
    recipe = load_recipe(folder / "recipe.yaml", {"model.weights": str(path)})
    plan = plan_encoder(recipe.model)
    stored = load_file(path)
    for name, tensor in build_encoder(plan.spec, weights=plan.weights).trunk.state_dict().items():
        assert torch.equal(tensor, stored[name]), name
    before = path.stat().st_mtime_ns
    seen.clear()
    assert run("train", folder / "recipe.yaml", "--encoder-only", path)[0] == 0
    assert (seen, path.stat().st_mtime_ns) == (set(), before)  # up to date


def test_other_splits_are_used_when_they_are_named(folder, tmp_path, monkeypatch):
    seen, path = learned_from(monkeypatch), tmp_path / "encoder.safetensors"
    wsi_ips.train_encoder(folder / "recipe.yaml", path, splits=("train", "val"))
    assert path.exists()
    rows = pd.read_csv(folder / "cohort" / "manifest.csv", dtype=str)
    assert seen == set(rows["slide_id"][rows["split"] != "test"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--encoder-only", "encoder.pth"], "written as .safetensors; name such a file"),
        (["--split", "val"], "--split: only with --encoder-only"),
        (["--encoder-only", "x.safetensors", "--split", "valid"], "no slide with tiles has split valid"),
        (["--encoder-only", "x.safetensors", "--set", "model.freeze=all"], "key `model.freeze`: self-supervision"),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(folder, arguments, said):
    code, output = run("train", folder / "recipe.yaml", *arguments)
    assert code == 2
    assert said in output
