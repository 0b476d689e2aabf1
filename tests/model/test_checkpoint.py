"""A checkpoint gives back the network and its card."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from wsi_ips.errors import CheckpointError
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint import build_net, load_checkpoint, save_checkpoint
from wsi_ips.model.checkpoint_card import CARD_NAME, EncoderOrigin, ModelCard, read_card, write_card
from wsi_ips.model.encoder_families import encoder_spec
from wsi_ips.model.poolings import POOLINGS

CARD = ModelCard(
    model_id="m",
    tasks=(Task("label", ("normal", "tumor")),),
    encoder=encoder_spec("resnet18-1", norm="auto", has_weights=False),
    heads=2,
    key_width=4,
    dropout=0.0,
    memory_size=3,
    patch_mpp=0.5,
    patch_px=32,
    fingerprint="f",
)


@pytest.mark.parametrize("pooling", list(POOLINGS))
def test_the_same_network_comes_back(tmp_path, pooling):
    card = replace(CARD, pooling=pooling)
    net = build_net(card).eval()
    save_checkpoint(tmp_path, net, card)
    loaded, read = load_checkpoint(tmp_path)
    assert read == card
    embeddings, mask = torch.randn(2, 4, 64), torch.ones(2, 4, dtype=torch.bool)
    torch.testing.assert_close(loaded(embeddings, mask), net(embeddings, mask), rtol=0, atol=0)


def test_a_card_comes_back_whole(tmp_path):
    card = replace(CARD, origin=EncoderOrigin("file", "w.pth", ("a-1", "b-2")), input="features", freeze=2)
    save_checkpoint(tmp_path, build_net(card), card)
    assert read_card(tmp_path) == card


@pytest.mark.parametrize("key", ["pooling", "position"])
def test_a_card_with_an_unknown_choice_is_refused(tmp_path, key):
    save_checkpoint(tmp_path, build_net(CARD), replace(CARD, **{key: "of-the-future"}))
    with pytest.raises(CheckpointError, match=f"{key}.*(`of-the-future`|Input should be)"):
        load_checkpoint(tmp_path)


def test_a_card_of_another_schema_is_refused(tmp_path):
    save_checkpoint(tmp_path, build_net(CARD), CARD)
    path = tmp_path / CARD_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 3}))
    with pytest.raises(CheckpointError, match="another version"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: "[1, 2]", "an object `{...}` is expected, not list"),
        (lambda _: "[" * 100_000, "nested too deeply"),
        (lambda _: '{"a": ' + "9" * 6000 + "}", "cannot be read"),
        (lambda _: "null", "an object"),
        (lambda card: card | {"heads": "many"}, "damaged .`heads`"),
        (lambda card: card | {"tasks": [1]}, "damaged .`tasks.0`"),
        (lambda card: card | {"tasks": "label"}, "damaged .`tasks`"),
        (lambda card: card | {"encoder": []}, "damaged .`encoder`"),
        (lambda card: card | {"surprise": 1}, "damaged .`surprise`"),
        (lambda card: card | {"encoder": card["encoder"] | {"surprise": 1}}, "damaged .`encoder.surprise`"),
        (
            lambda card: {key: card[key] for key in card if key != "fingerprint"},
            "damaged .`fingerprint`: Field required",
        ),
    ],
)
def test_a_damaged_card_is_told_by_its_key(tmp_path, change, says):
    write_card(tmp_path, CARD)
    path = tmp_path / CARD_NAME
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(CheckpointError, match=says) as caught:
        read_card(tmp_path)
    assert len(str(caught.value)) < 500
