"""The card says truly where an encoder began, what learned, and whose licence holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wsi_ips.config.learning_sections import ModelSection
from wsi_ips.model.checkpoint_card import EncoderOrigin, ModelCard, licence_text, origin_text, training_text, write_card
from wsi_ips.model.encoder_families import encoder_spec
from wsi_ips.training.model_building import plan_encoder

CARD = ModelCard(
    model_id="first-0123",
    encoder=encoder_spec("resnet18-1", norm="auto", has_weights=False),
    memory_size=3,
    patch_mpp=0.5,
    patch_px=32,
    fingerprint="f",
    origin=EncoderOrigin("random"),
)
UNI = replace(CARD, encoder=encoder_spec("preset:uni", norm="auto", has_weights=True))
PUBLISHED, FILE = EncoderOrigin("published"), EncoderOrigin("file", "w.pth")
IMPORTED = replace(CARD.encoder, name="imported:uni", features=64)


@pytest.mark.parametrize(
    ("card", "begins", "licence"),
    [
        (CARD, "random initial weights", "no published weights were used"),
        (
            replace(CARD, origin=PUBLISHED),
            "published initial weights",
            "the licence on their page also applies to the model",
        ),
        (
            replace(CARD, origin=FILE),
            "initial weights from w.pth",
            "from the file w.pth; its terms also apply to the model",
        ),
        (replace(UNI, origin=PUBLISHED), "published initial weights", "uni: CC-BY-NC-ND-4.0, no commercial use"),
        (
            replace(UNI, origin=FILE),
            "initial weights from w.pth",
            "uni from the file w.pth: CC-BY-NC-ND-4.0, no commercial use",
        ),
        (replace(UNI, origin=EncoderOrigin("random")), "random initial weights", "no published weights were used"),
        (replace(CARD, encoder=IMPORTED, origin=EncoderOrigin("imported")), "run by another tool", "another tool"),
        (replace(CARD, origin=None), "", "is not recorded"),
    ],
)
def test_origin_and_licence_are_those_of_the_weights(card, begins, licence):
    assert origin_text(card).startswith(begins)
    assert licence in licence_text(card)


@pytest.mark.parametrize("origin", [PUBLISHED, FILE, EncoderOrigin("random")])
def test_a_training_from_a_start_model_inherits_the_origin_of_its_encoder(tmp_path: Path, origin: EncoderOrigin):
    write_card(tmp_path, replace(CARD, origin=origin))
    found = plan_encoder(ModelSection(start=tmp_path, encoder="resnet18-1")).origin
    assert found == replace(origin, through=("first-0123",))
    card = replace(CARD, origin=found)
    assert origin_text(card).endswith("trained further from first-0123")
    assert ("no published weights" in licence_text(card)) == (origin.source == "random")


def test_a_start_model_without_an_encoder_leaves_the_origin_to_the_recipe(tmp_path: Path):
    write_card(tmp_path, replace(CARD, encoder=IMPORTED, origin=EncoderOrigin("imported")))
    assert plan_encoder(ModelSection(start=tmp_path, encoder="resnet18-1", pretrained=True)).origin == PUBLISHED


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Trained end to end on pixels"),
        ({"input": "features"}, "Trained on stored features of an encoder that did not learn"),
        ({"encoder": IMPORTED}, "Trained on stored features"),
        (
            {"freeze": "all"},
            "Trained on pixels from slide labels (Iterative Patch Selection); the encoder did not learn",
        ),
        ({"freeze": 2}, "the first 2 stages of the encoder did not learn"),
        ({"freeze": "lora"}, "only added low-rank matrices (LoRA) learned"),
    ],
)
def test_only_a_model_whose_whole_encoder_learned_is_trained_end_to_end(changes, said):
    text = training_text(replace(CARD, **changes))
    assert said in text
    assert ("end to end" in text) == (not changes)
