"""What the recipe says of the encoder reaches training and prediction, and what must be said is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.small_cohort import SLIDES, SMALL
from wsi_ips.config import load_recipe
from wsi_ips.errors import RecipeError
from wsi_ips.inference import slide_prediction
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.model import int8, scan_backends
from wsi_ips.model.checkpoint_card import read_card
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.encoders import ENCODERS, PRESETS
from wsi_ips.pipeline import run_stage
from wsi_ips.pipeline.demo_slides import make_slides
from wsi_ips.pipeline.progress import Silent

MODEL = {**SMALL["model"], "encoder": "preset:photographs", "freeze": 1}


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def recipe_of(folder: Path, **overrides: object):
    path = folder / "recipe.yaml"
    make_slides(folder / "cohort", replace(SLIDES, slides=4), seed=5)
    values: dict[str, Any] = {**SMALL, "model": MODEL}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_recipe(path, {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    """Folder of a trained run and the notes of its training."""
    folder, notes = tmp_path_factory.mktemp("run"), Notes()
    preset = replace(
        PRESETS["resnet50"],
        key="photographs",
        model="resnet18-2",
        commercial=False,
        licence="L",
        mpp=(0.5, 0.5),
    )
    with pytest.MonkeyPatch.context() as patch:
        entry = replace(ENCODERS["preset:resnet50"], name="preset:photographs", preset=preset)
        patch.setitem(ENCODERS._entries, "preset:photographs", entry)
        run_stage(recipe_of(folder), "train", notes)
        yield folder, notes


def test_licence_scale_and_size_are_said_before_training(trained):
    said = " ".join(trained[1].lines)
    assert "licence L does not allow commercial use" in said
    assert "made for 0.5 µm/px, the recipe reads tiles at 2 µm/px" in said
    assert "made for patches of 224 px" in said


def test_the_frozen_stage_has_not_learned_and_the_other_has(trained):
    folder, _ = trained
    stored = load_file(folder / "out" / "model" / "model.safetensors")
    torch.manual_seed(0)
    fresh = build_encoder(encoder_spec("preset:photographs", norm="auto", has_weights=False)).trunk.state_dict()
    same = {name: torch.equal(stored[f"encoder.trunk.{name}"], tensor) for name, tensor in fresh.items()}
    assert all(equal for name, equal in same.items() if name.split(".")[0] in "014")
    assert not any(equal for name, equal in same.items() if name.startswith("5"))
    assert read_card(folder / "out" / "model").encoder.name == "preset:photographs"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__freeze": 3}, r"model\.freeze.*2 stages"),
        ({"model__freeze": 1, "model__lora_rank": 4}, "freezes the whole encoder"),
        ({"model__freeze": "none", "model__lora_rank": 4}, "has no attention"),
        ({"model__encoder": "preset:none"}, "no encoder `preset:none`"),
    ],
)
def test_what_does_not_fit_is_a_recipe_error(trained, overrides, message):
    with pytest.raises(RecipeError, match=message):
        run_stage(recipe_of(trained[0], **overrides), "train")


def test_an_int8_scan_is_done_once_reported_and_stored(trained, monkeypatch):
    folder, _ = trained
    for name in int8.LIBRARIES:
        pytest.importorskip(name, reason=f"{name} is not installed (extra `int8`)")
    if not torch.cpu._is_vnni_supported():
        pytest.skip("this CPU has no 8-bit dot product")
    monkeypatch.setattr(slide_prediction, "CALIBRATION_TILES", 8)
    monkeypatch.setattr(slide_prediction, "CHECKED_TILES", 16)
    monkeypatch.setattr(slide_prediction, "LEAST_TILES_CALIBRATED", 24)
    monkeypatch.setattr(scan_backends, "LEAST_CORRELATION", -1.0)

    def scores_after(notes: Notes, **overrides: Any):
        run = run_stage(recipe_of(folder, **overrides), "predict", notes)
        (first, *_) = [r for r in run.slides.records if r.split == "test"]
        return read_scores(run.folder.scores, first.slide_id)

    exact = scores_after(Notes())
    notes = Notes()
    near = scores_after(notes, compute__scan_backend="int8")
    assert exact.check is None
    assert near.check is not None
    assert near.fingerprint != exact.fingerprint
    assert not np.array_equal(near.attention_logits, exact.attention_logits)
    reports = [line for line in notes.lines if "int8 scan" in line]
    assert len(reports) == 2
    assert f"{near.check}" in " ".join(reports)
    again = Notes()
    scores_after(again, compute__scan_backend="int8")
    assert not [line for line in again.lines if "int8 scan" in line]
