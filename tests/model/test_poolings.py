"""Contract of all poolings: masks, company, order and the bag of one; and what each is for."""

from __future__ import annotations

import math

import pytest
import torch

from wsi_ips.labels import Task
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.model.pooling import Pooling
from wsi_ips.model.poolings import POOLINGS

NAMES = list(POOLINGS)
WIDTH = 12


def pooling_of(name: str, queries: int = 2) -> Pooling:
    torch.manual_seed(0)
    return POOLINGS[name].load()(WIDTH, queries=queries, heads=3, key_width=5, dropout=0.1).double().eval()


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def everything(count: int, tiles: int) -> torch.Tensor:
    return torch.ones(count, tiles, dtype=torch.bool)


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_company_change_nothing(name):
    pooling, tiles = pooling_of(name), random(4, WIDTH)
    padded = torch.full((2, 9, WIDTH), 7.0, dtype=torch.float64)
    padded[0, 1:5] = tiles
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 1:5], mask[1] = True, True
    alone = pooling(tiles[None], everything(1, 4))
    torch.testing.assert_close(pooling(padded, mask)[:1], alone, rtol=1e-12, atol=1e-12)
    assert alone.shape == (1, 2, WIDTH)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_tiles_changes_nothing(name):
    pooling, tiles = pooling_of(name), random(1, 6, WIDTH)
    torch.testing.assert_close(pooling(tiles, everything(1, 6)), pooling(tiles.flip(1), everything(1, 6)))


@pytest.mark.parametrize("name", NAMES)
def test_bag_of_one_equals_a_slide_of_one_tile(name):
    pooling, tiles = pooling_of(name), random(5, WIDTH)
    torch.testing.assert_close(pooling.alone(tiles), pooling(tiles[:, None], everything(5, 1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_logit_of_a_tile_ignores_the_other_tiles(name):
    pooling, tiles = pooling_of(name), random(2, 6, WIDTH)
    logits = pooling.logits(tiles)
    assert logits.shape == (2, 6, 2, 3 if name == "attention" else 1)
    torch.testing.assert_close(logits[1, 2], pooling.logits(tiles[1, 2]))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name):
    pooling = pooling_of(name)
    pooling(random(2, 6, WIDTH), everything(2, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pooling.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_built_with_any_pooling(name):
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    net = IpsNet(
        encoder, NetSettings(tasks=(Task("label", ("0", "1", "2")),), heads=2, key_width=4, pooling=name)
    ).eval()
    scores = net.score(torch.rand(2, 3, 32, 32), with_probability=True)
    assert scores.logits.shape[:2] == (2, 1)
    torch.testing.assert_close(scores.probability.sum(1), torch.ones(2))


def test_attention_is_the_published_formula():
    block, tiles = pooling_of("attention"), random(1, 4, WIDTH)
    logits = block.logits(tiles)  # (1, K, T, H)
    query = (block.queries @ block.to_query.weight.T).view(2, 3, 5)
    key = (tiles[0] @ block.to_key.weight.T).view(4, 3, 5)
    for k in range(4):
        for t in range(2):
            for h in range(3):
                assert logits[0, k, t, h].item() == pytest.approx((query[t, h] @ key[k, h]).item() / math.sqrt(5))
    value = (tiles[0] @ block.to_value.weight.T).view(4, 3, 5)
    attended = torch.einsum("kth,khe->the", logits[0].softmax(0), value).reshape(2, 15)
    x = block.norm_attention(block.queries + attended @ block.to_out.weight.T)
    x = block.norm_mlp(x + block.mlp(x))
    torch.testing.assert_close(block(tiles, everything(1, 4))[0], x)


def test_abmil_is_the_published_formula():
    pooling, tiles = pooling_of("abmil", queries=1), random(1, 4, WIDTH)
    v, u, w = pooling.to_content, pooling.to_gate, pooling.to_logit.weight[0]
    logits = [
        (w * torch.tanh(v.weight @ h + v.bias) * torch.sigmoid(u.weight @ h + u.bias)).sum().exp() for h in tiles[0]
    ]
    expected = sum(a * h for a, h in zip(logits, tiles[0], strict=True)) / sum(logits)
    torch.testing.assert_close(pooling(tiles, everything(1, 4))[0, 0], expected)
