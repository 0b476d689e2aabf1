"""Contract of all poolings: masks, company, order and the bag of one; and what each is for."""

from __future__ import annotations

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
    return POOLINGS[name].load()(WIDTH, queries=queries, heads=3, key_width=5, dropout=0.1).eval()


def everything(count: int, tiles: int) -> torch.Tensor:
    return torch.ones(count, tiles, dtype=torch.bool)


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_company_change_nothing(name):
    pooling, tiles = pooling_of(name), torch.randn(4, WIDTH)
    padded = torch.full((2, 9, WIDTH), 7.0)
    padded[0, 1:5] = tiles
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 1:5], mask[1] = True, True
    alone = pooling(tiles[None], everything(1, 4))
    torch.testing.assert_close(pooling(padded, mask)[:1], alone, rtol=1e-5, atol=1e-6)
    assert alone.shape == (1, 2, WIDTH)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_tiles_changes_nothing(name):
    pooling, tiles = pooling_of(name), torch.randn(1, 6, WIDTH)
    torch.testing.assert_close(pooling(tiles, everything(1, 6)), pooling(tiles.flip(1), everything(1, 6)))


@pytest.mark.parametrize("name", NAMES)
def test_bag_of_one_equals_a_slide_of_one_tile(name):
    pooling, tiles = pooling_of(name), torch.randn(5, WIDTH)
    torch.testing.assert_close(pooling.alone(tiles), pooling(tiles[:, None], everything(5, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_logit_of_a_tile_ignores_the_other_tiles(name):
    pooling, tiles = pooling_of(name), torch.randn(2, 6, WIDTH)
    logits = pooling.logits(tiles)
    assert logits.shape == (2, 6, 2, 3 if name == "attention" else 1)
    torch.testing.assert_close(logits[1, 2], pooling.logits(tiles[1, 2]))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name):
    pooling = pooling_of(name)
    pooling(torch.randn(2, 6, WIDTH), everything(2, 6)).square().sum().backward()
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


def test_abmil_is_the_published_formula():
    pooling, tiles = pooling_of("abmil", queries=1), torch.randn(1, 4, WIDTH)
    v, u, w = pooling.to_content, pooling.to_gate, pooling.to_logit.weight[0]
    logits = [
        (w * torch.tanh(v.weight @ h + v.bias) * torch.sigmoid(u.weight @ h + u.bias)).sum().exp() for h in tiles[0]
    ]
    expected = sum(a * h for a, h in zip(logits, tiles[0], strict=True)) / sum(logits)
    torch.testing.assert_close(pooling(tiles, everything(1, 4))[0, 0], expected)
