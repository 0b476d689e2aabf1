"""A checkpoint gives back the network, its pooling and its way of selecting."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from wsi_ips.errors import CheckpointError
from wsi_ips.labels import Task
from wsi_ips.model import ModelCard, encoder_spec, load_checkpoint, save_checkpoint
from wsi_ips.model.checkpoint import CARD_NAME, build_net
from wsi_ips.model.rules import even, exact, paper

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
    metrics={},
)


@pytest.mark.parametrize("pooling", ["attention", "abmil", "mean", "max"])
def test_the_same_network_comes_back(tmp_path, pooling):
    card = replace(CARD, pooling=pooling)
    net = build_net(card).eval()
    save_checkpoint(tmp_path, net, card)
    loaded, read = load_checkpoint(tmp_path)
    assert read == card
    embeddings, mask = torch.randn(2, 4, 64), torch.ones(2, 4, dtype=torch.bool)
    torch.testing.assert_close(loaded(embeddings, mask), net(embeddings, mask), rtol=0, atol=0)
    assert loaded.rule is (even if pooling == "mean" else exact)


def test_the_rule_comes_back(tmp_path):
    card = replace(CARD, selection="paper", iteration_size=5)
    save_checkpoint(tmp_path, build_net(card), card)
    logits = np.random.default_rng(0).normal(0, 3, (200, 1, 8)).astype(np.float32)
    loaded, _ = load_checkpoint(tmp_path)
    np.testing.assert_array_equal(loaded.rule(logits, 20), paper(logits, 20, iteration_size=5))


def test_a_card_from_before_there_was_a_choice_means_attention_and_exact(tmp_path):
    save_checkpoint(tmp_path, build_net(CARD), CARD)
    path = tmp_path / CARD_NAME
    stored = json.loads(path.read_text())
    for name in ("pooling", "selection", "iteration_size"):
        del stored[name]
    path.write_text(json.dumps(stored))
    assert load_checkpoint(tmp_path)[1] == CARD


@pytest.mark.parametrize("key", ["pooling", "selection"])
def test_a_card_with_an_unknown_choice_is_refused(tmp_path, key):
    save_checkpoint(tmp_path, build_net(CARD), replace(CARD, **{key: "of-the-future"}))
    with pytest.raises(CheckpointError, match=f"{key} `of-the-future`"):
        load_checkpoint(tmp_path)
