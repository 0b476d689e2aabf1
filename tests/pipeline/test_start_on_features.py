"""The start `features`: heads learn on all tiles of stored features, then training goes on end to end."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.small_cohort import SLIDES, write_recipe
from wsi_ips.cli import app
from wsi_ips.model.checkpoint_card import EncoderOrigin, origin_text, read_card
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.pipeline.start_on_features import HeadStart
from wsi_ips.tiles.feature_store import FeatureTiles, open_features
from wsi_ips.training.loop import Trainer
from wsi_ips.training.model_building import encoder_fingerprint
from wsi_ips.training.resume import StateFile
from wsi_ips.training.settings import LabelledSlide

TRAINING = {"start_steps": 6, "start_views": 2, "epochs": 1, "batch_slides": 2}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with encoder weights whose training is done, with default `training.start`; `said`: its output."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(3)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=True))
    weights = {name: value.contiguous() for name, value in encoder.trunk.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    (folder / "said").write_text(train(folder))
    return folder


def train(folder: Path, **training: object) -> str:
    """Write the recipe, run `wsi-ips train`, and return what it printed, on one line."""
    slides = replace(SLIDES, split=(0.5, 0.25, 0.25))
    recipe = write_recipe(folder, slides=slides, training=TRAINING | training)
    set_weights = ["--set", f"model.weights={folder / 'weights.safetensors'}"]
    result = CliRunner().invoke(app, ["train", str(recipe), *set_weights])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def slides_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_encoder_with_weights_starts_on_features_and_the_output_says_why(trained):
    said = (trained / "said").read_text()
    assert "training starts on `features`: the encoder has weights" in said
    assert "start on features, epoch 3: loss" in said
    epochs = [json.loads(line)["epoch"] for line in (trained / "out" / "start_metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3]  # 6 steps of 2 of 4 slides
    assert read_card(trained / "out" / "model").metrics["epoch"] == 1
    assert not (trained / "out" / "training").exists()


def test_check_tells_the_start_and_its_cost_before(trained):
    weights = f"weights: {trained / 'weights.safetensors'}"
    recipe = trained / "check.yaml"
    text = (trained / "recipe.yaml").read_text().replace("encoder: resnet18-1", f"encoder: resnet18-1\n  {weights}")
    recipe.write_text(text)
    said = " ".join(CliRunner().invoke(app, ["check", str(recipe)]).output.split())
    assert "training starts on `features` (the encoder has weights" in said
    assert "steps: 6 of the start, 2 with selection; tiles: " in said
    cost = json.loads(CliRunner().invoke(app, ["check", str(recipe), "--json"]).output)["training"]
    assert cost["learned"] == 4 * 4  # four tiles of four slides


def test_views_are_stored_of_training_slides_and_plain_features_of_validation_slides_and_none_of_test_slides(trained):
    plain, view = sorted((trained / "out" / "features.zarr").iterdir(), key=lambda folder: len(folder.name))
    assert view.name == f"{plain.name}-view1"
    assert slides_in(view) < slides_in(plain)
    assert len(slides_in(view)) == 4
    assert len(slides_in(plain)) == 6


def test_training_goes_on_from_the_attention_and_the_encoder_of_the_start(trained, tmp_path, monkeypatch):
    """With learning rates near zero after the start, the model is that of the start."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "out" / "model")
    kept = {}

    def keep(self, trunk):
        finish(self, trunk)
        kept.update(load_file(self.checkpoint / "model.safetensors"))

    finish = HeadStart.finish
    monkeypatch.setattr(HeadStart, "finish", keep)
    train(folder, encoder_rate=1e-9, warmup_steps=0, weight_decay=0)
    model = load_file(folder / "out" / "model" / "model.safetensors")
    given = load_file(folder / "weights.safetensors")
    trunk = {name.removeprefix("encoder.trunk."): value for name, value in kept.items() if "trunk" in name}
    assert all(torch.equal(trunk[name], given[name]) for name in given)
    for name, value in model.items():
        if "encoder.trunk" in name and value.is_floating_point():
            torch.testing.assert_close(value, kept[name], rtol=0, atol=1e-5)
    assert not torch.equal(model["head.weight"], kept["head.weight"])


def test_stopped_in_the_start_it_goes_on_there_and_ends_with_the_same_model(trained, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    whole = (folder / "out" / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "out" / "model")
    monkeypatch.setitem(StateFile.__init__.__kwdefaults__, "every_s", 0.0)
    run_steps, calls = Trainer._run_steps, []

    def stopped(self, state, *arguments):
        calls.append(state.epoch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        run_steps(self, state, *arguments)

    monkeypatch.setattr(Trainer, "_run_steps", stopped)
    with pytest.raises(AssertionError):
        train(folder)
    assert (folder / "out" / "training" / "start" / "state.safetensors").exists()
    monkeypatch.setattr(Trainer, "_run_steps", run_steps)
    assert "start on features resumes in epoch 2" in train(folder)
    assert (folder / "out" / "model" / "model.safetensors").read_bytes() == whole


def test_features_that_do_not_fit_on_the_disk_are_refused_with_their_size_before_any_is_computed(
    trained, tmp_path, monkeypatch
):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "out" / "features.zarr")
    shutil.rmtree(folder / "out" / "model")
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**6, 10**6, 1000))
    slides = replace(SLIDES, split=(0.5, 0.25, 0.25))
    recipe = write_recipe(folder, slides=slides, training=TRAINING)
    weights = f"model.weights={folder / 'weights.safetensors'}"
    result = CliRunner().invoke(app, ["train", str(recipe), "--set", weights])
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert "features of " in said
    assert "set `features.location` to a larger disk, fewer `training.start_views`" in said
    assert not (folder / "out" / "features.zarr").exists()


def test_the_fingerprint_of_an_encoder_is_that_of_the_file(trained):
    spec = encoder_spec("resnet18-1", norm="auto", has_weights=True)
    encoder = build_encoder(spec, weights=trained / "weights.safetensors")
    plain = min(slides_in(trained / "out" / "features.zarr"), key=len)
    assert plain.endswith(encoder_fingerprint(encoder)[:8])


def test_a_view_shows_other_features_and_epochs_use_the_views_in_turn(trained):
    plain, view = sorted((trained / "out" / "features.zarr").iterdir(), key=lambda folder: len(folder.name))
    name = min(slides_in(view))
    features = [open_features(folder, name) for folder in (plain, view)]
    tiles = np.arange(features[0].tiles)
    assert np.abs(features[0].rows(tiles) - features[1].rows(tiles)).mean() > 0.01
    one, other = (FeatureTiles(0, name, None, None, None, stored) for stored in features)  # type: ignore[arg-type]
    slide = LabelledSlide(one, (0,), others=(other,))
    assert [slide.visited(epoch, 0).tiles for epoch in (2, 3, 4)] == [one, other, one]
    assert slide.visited(2, 1).tiles is other


def test_without_augmentation_tiles_are_embedded_once(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "out" / "features.zarr")
    train(folder, augment=False)
    assert len(list((folder / "out" / "features.zarr").iterdir())) == 1


def test_self_supervision_comes_first_and_the_model_says_so(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "out" / "features.zarr")
    said = train(folder, start="self-supervised", start_steps=2)
    assert said.index("self-supervision, step 2: loss") < said.index("start on features, epoch 1: loss")
    learned, given = (load_file(folder / name) for name in ("out/encoder.safetensors", "weights.safetensors"))
    assert any(not torch.equal(learned[name], given[name]) for name in given)
    card = read_card(folder / "out" / "model")
    assert card.origin == EncoderOrigin("file", "weights.safetensors", self_supervised=True)
    assert origin_text(card) == (
        "initial weights from weights.safetensors, then self-supervised on the training slides' tiles"
    )
    plain = min(slides_in(folder / "out" / "features.zarr"), key=len)
    spec = encoder_spec("resnet18-1", norm="auto", has_weights=True)
    encoder = build_encoder(spec, weights=folder / "out" / "encoder.safetensors")
    assert plain.endswith(encoder_fingerprint(encoder)[:8])  # the features are those of the encoder that learned
