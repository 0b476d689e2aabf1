"""The published greedy rule is reproduced; the exact rule keeps what it loses; parts of a slide can be joined."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.test_selection import pixels_of, reference, run
from wsi_ips.errors import ScoresError
from wsi_ips.model.rules import even, exact, paper, selection_rule
from wsi_ips.model.selection import Selection, merge


def greedy_reference(logits: np.ndarray, memory_size: int, iteration_size: int) -> set[int]:
    """Algorithm 1 in plain PyTorch: buffer of M, chunks of I, softmax inside both, mean over heads, then queries."""
    table = torch.from_numpy(logits).double().permute(1, 2, 0)  # (T, H, N)
    number = torch.arange(table.shape[-1])
    if memory_size >= len(number):
        return set(number.tolist())
    buffer = number[:memory_size]
    for chunk in number[memory_size:].split(iteration_size):
        both = torch.cat([buffer, chunk])
        score = table[:, :, both].softmax(dim=-1).mean(dim=1).mean(dim=0)
        buffer = both[score.topk(memory_size).indices]
    return set(buffer.tolist())


def table(seed: int, tiles: int, queries: int, heads: int, spread: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (tiles, queries, heads)).astype(np.float32)


shapes = {
    "seed": st.integers(0, 10_000),
    "tiles": st.integers(1, 80),
    "memory_size": st.integers(1, 30),
    "iteration_size": st.integers(1, 40),
}


@settings(deadline=None, max_examples=60)
@given(queries=st.integers(1, 3), heads=st.integers(1, 8), **shapes)
def test_paper_equals_the_published_loop(seed, tiles, queries, heads, memory_size, iteration_size):
    logits = table(seed, tiles, queries, heads)
    kept = paper(logits, memory_size, iteration_size=iteration_size)
    assert len(kept) == min(memory_size, tiles)
    assert set(kept.tolist()) == greedy_reference(logits, memory_size, iteration_size)


@settings(deadline=None, max_examples=40)
@given(**shapes)
def test_with_one_head_and_query_paper_equals_exact(seed, tiles, memory_size, iteration_size):
    logits = table(seed, tiles, 1, 1)
    assert paper(logits, memory_size, iteration_size=iteration_size).tolist() == exact(logits, memory_size).tolist()


@pytest.mark.parametrize("iteration_size", [50, 500])
def test_with_eight_heads_paper_loses_winners_and_exact_none(iteration_size):
    recalls = []
    for seed in range(5):
        logits = table(seed, 2000, 1, 8, spread=3.0)
        true = reference(logits, 50)
        assert exact(logits, 50).tolist() == true
        recalls.append(len(np.intersect1d(paper(logits, 50, iteration_size=iteration_size), true)) / 50)
    assert 0.5 < np.mean(recalls) < 0.98


def test_paper_depends_on_the_order_of_tiles_and_exact_does_not():
    logits = table(1, 400, 1, 8, spread=3.0)
    order = np.random.default_rng(0).permutation(400)
    assert set(order[exact(logits[order], 20)]) == set(exact(logits, 20))
    assert set(order[paper(logits[order], 20, iteration_size=20)]) != set(paper(logits, 20, iteration_size=20))


def test_equal_scores_go_by_position_in_both_rules():
    logits = np.zeros((10, 1, 2), np.float32)
    assert exact(logits, 4).tolist() == paper(logits, 4, iteration_size=3).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("tiles", "memory_size", "kept"), [(10, 5, [1, 3, 5, 7, 9]), (3, 5, [0, 1, 2]), (9, 3, [1, 4, 7]), (5, 1, [2])]
)
def test_even_takes_tiles_at_equal_steps(tiles, memory_size, kept):
    assert even(np.zeros((tiles, 1, 1), np.float32), memory_size).tolist() == kept


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), heads=st.integers(1, 8), chunk_size=st.integers(1, 50), company=st.booleans())
def test_a_scan_by_the_paper_rule_does_not_depend_on_chunks_order_or_company(seed, heads, chunk_size, company):
    logits = table(seed, 60, 1, heads)
    tables = [logits, table(seed + 1, 25, 1, heads)] if company else [logits]
    order = np.random.default_rng(seed).permutation(sum(len(t) for t in tables))
    found, _ = run(tables, 7, chunk_size, order, rule=selection_rule("paper", iteration_size=9))
    assert set(found[0].tiles.tolist()) == greedy_reference(logits, 7, 9)
    np.testing.assert_array_equal(found[0].pixels, pixels_of(0, found[0].tiles))
    np.testing.assert_array_equal(found[0].logits, logits)


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
    best = tiles[exact(logits[tiles], memory_size)]
    return Selection(best, pixels_of(0, best), exact_scores(logits[tiles]), tiles, logits[tiles], None)


def exact_scores(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64))
    return (weights / weights.sum(0)).mean((1, 2))


def test_a_tile_in_two_parts_is_refused():
    part = selected(np.arange(3), table(0, 3, 1, 2), 2)
    with pytest.raises(ScoresError, match="two parts"):
        merge([part, part], memory_size=2, read_again=lambda ids: pixels_of(0, ids))
