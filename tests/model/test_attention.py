"""The pooling block: masks, company and the bag of one."""

from __future__ import annotations

import math

import pytest
import torch

from wsi_ips.model.pooling import CrossAttentionPooling


@pytest.fixture
def block() -> CrossAttentionPooling:
    torch.manual_seed(0)
    return CrossAttentionPooling(12, queries=2, heads=3, key_width=5, dropout=0.1).double().eval()


def test_padding_and_company_change_nothing(block):
    tiles = torch.randn(4, 12, dtype=torch.float64)
    alone = block(tiles[None], torch.ones(1, 4, dtype=torch.bool))
    padded = torch.full((2, 9, 12), 7.0, dtype=torch.float64)
    padded[0, :4] = tiles
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, :4], mask[1] = True, True
    torch.testing.assert_close(block(padded, mask)[:1], alone, rtol=1e-12, atol=1e-12)


def test_order_of_tiles_changes_nothing(block):
    tiles = torch.randn(1, 6, 12, dtype=torch.float64)
    mask = torch.ones(1, 6, dtype=torch.bool)
    torch.testing.assert_close(block(tiles, mask), block(tiles.flip(1), mask))


def test_bag_of_one_equals_a_slide_of_one_tile(block):
    tiles = torch.randn(5, 12, dtype=torch.float64)
    slides = block(tiles[:, None], torch.ones(5, 1, dtype=torch.bool))
    torch.testing.assert_close(block.alone(tiles), slides, rtol=1e-12, atol=1e-12)


def test_forward_is_the_published_formula(block):
    tiles = torch.randn(1, 4, 12, dtype=torch.float64)
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
    torch.testing.assert_close(block(tiles, torch.ones(1, 4, dtype=torch.bool))[0], x)


def test_the_logit_of_a_tile_ignores_the_other_tiles(block):
    tiles = torch.randn(6, 12, dtype=torch.float64)
    torch.testing.assert_close(block.logits(tiles)[2], block.logits(tiles[2]))
