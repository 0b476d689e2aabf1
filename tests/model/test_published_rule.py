"""The published greedy rule loses winners that the exact rule keeps; parts of a slide can be joined."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.test_selection import pixels_of, reference
from wsi_ips.errors import ScoresError
from wsi_ips.model.selection import Selection, best_tiles, merge


def greedy_rule(logits: np.ndarray, memory_size: int, iteration_size: int) -> list[int]:
    """Algorithm 1 of Bergner et al., 2023: buffer of M, chunks of I, softmax inside both, mean over heads, queries.

    With H·T > 1 a tile's rank depends on the other tiles of its chunk, so order and chunk size change the result.
    """
    table = torch.from_numpy(logits).double().permute(1, 2, 0)  # (T, H, N)
    number = torch.arange(table.shape[-1])
    if memory_size >= len(number):
        return number.tolist()
    buffer = number[:memory_size]
    for chunk in number[memory_size:].split(iteration_size):
        both = torch.cat([buffer, chunk])
        score = table[:, :, both].softmax(dim=-1).mean(dim=1).mean(dim=0)
        buffer = both[score.topk(memory_size).indices]
    return buffer.tolist()


def table(seed: int, tiles: int, queries: int, heads: int, spread: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (tiles, queries, heads)).astype(np.float32)


shapes = {
    "seed": st.integers(0, 10_000),
    "tiles": st.integers(1, 80),
    "memory_size": st.integers(1, 30),
    "iteration_size": st.integers(1, 40),
}


@settings(deadline=None, max_examples=40)
@given(**shapes)
def test_with_one_head_and_query_both_rules_agree(seed, tiles, memory_size, iteration_size):
    logits = table(seed, tiles, 1, 1)
    assert set(greedy_rule(logits, memory_size, iteration_size)) == set(best_tiles(logits, memory_size).tolist())


@pytest.mark.parametrize("iteration_size", [50, 500])
def test_with_eight_heads_the_published_rule_loses_winners_and_ours_none(iteration_size):
    recalls = []
    for seed in range(5):
        logits = table(seed, 2000, 1, 8, spread=3.0)
        true = reference(logits, 50)
        assert best_tiles(logits, 50).tolist() == true
        recalls.append(len(np.intersect1d(greedy_rule(logits, 50, iteration_size), true)) / 50)
    assert 0.5 < np.mean(recalls) < 0.98


def test_the_published_rule_depends_on_the_order_of_tiles_and_ours_does_not():
    logits = table(1, 400, 1, 8, spread=3.0)
    order = np.random.default_rng(0).permutation(400)
    assert set(order[best_tiles(logits[order], 20)]) == set(best_tiles(logits, 20))
    assert set(order[greedy_rule(logits[order], 20, 20)]) != set(greedy_rule(logits, 20, 20))


def test_equal_scores_go_by_position():
    assert best_tiles(np.zeros((10, 1, 2), np.float32), 4).tolist() == [0, 1, 2, 3]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    tiles=st.integers(1, 60),
    heads=st.integers(1, 8),
    memory_size=st.integers(1, 20),
    shards=st.integers(1, 4),
)
def test_joined_parts_equal_one_scan(seed, tiles, heads, memory_size, shards):
    rng = np.random.default_rng(seed)
    logits = table(seed, tiles, 1, heads)
    owner = rng.integers(0, shards, tiles)
    parts = [selected(np.flatnonzero(owner == s), logits, memory_size) for s in range(shards) if (owner == s).any()]
    joined = merge(parts, memory_size=memory_size, read_again=lambda ids: pixels_of(0, ids))
    assert joined.tiles.tolist() == reference(logits, memory_size)
    np.testing.assert_array_equal(joined.pixels, pixels_of(0, joined.tiles))
    np.testing.assert_array_equal(joined.logits, logits)
    assert joined.score.tolist() == pytest.approx(exact_scores(logits)[joined.tiles].tolist())


def selected(tiles: np.ndarray, logits: np.ndarray, memory_size: int) -> Selection:
    """What a scan of some tiles of a slide gives."""
    best = tiles[best_tiles(logits[tiles], memory_size)]
    return Selection(tiles, logits[tiles], None, best, pixels_of(0, best), exact_scores(logits[tiles]))


def exact_scores(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64))
    return (weights / weights.sum(0)).mean((1, 2))


def test_a_tile_in_two_parts_is_refused():
    part = selected(np.arange(3), table(0, 3, 1, 2), 2)
    with pytest.raises(ScoresError, match="two parts"):
        merge([part, part], memory_size=2, read_again=lambda ids: pixels_of(0, ids))
