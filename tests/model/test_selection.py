"""Selection is the exact top-M of the attention over the whole slide, however the tiles arrive."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.errors import ScoresError
from wsi_ips.model.selection import SlideToScan, scan


class Chunk(NamedTuple):
    pixels: np.ndarray
    slot: np.ndarray
    tile: np.ndarray


def pixels_of(slot: int, tiles: np.ndarray) -> np.ndarray:
    """A patch that says whose it is: slot and tile number in its bytes."""
    patches = np.zeros((len(tiles), 2, 3, 3), np.uint8)
    patches[:, 0, 0, 0] = slot
    patches[:, 1, 2, 0] = tiles % 256
    patches[:, 1, 2, 1] = tiles // 256
    return patches


def reference(logits: np.ndarray, memory_size: int) -> list[int]:
    """All embeddings at once, full softmax per query and head, one top-M."""
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=0))
    score = (weights / weights.sum(axis=0)).mean(axis=(1, 2))
    return sorted(range(len(score)), key=lambda i: (-score[i], i))[:memory_size]


def run(tables: list[np.ndarray], memory_size: int, chunk_size: int, order: np.ndarray):
    """Scan slides whose logits are ``tables``, tiles of all slides in the given order."""
    owner = np.concatenate([np.full(len(t), s) for s, t in enumerate(tables)])
    number = np.concatenate([np.arange(len(t)) for t in tables])
    owner, number = owner[order], number[order]
    read_again = []

    def chunks():
        for start in range(0, len(owner), chunk_size):
            slot, tile = owner[start : start + chunk_size], number[start : start + chunk_size]
            pixels = np.concatenate([pixels_of(s, np.array([t])) for s, t in zip(slot, tile, strict=True)])
            yield Chunk(pixels, slot, tile)

    def score(pixels, slot, tile):
        return np.stack([tables[s][t] for s, t in zip(slot, tile, strict=True)]), None

    def again(slot, tiles):
        read_again.extend(tiles.tolist())
        return pixels_of(slot, tiles)

    slides = [SlideToScan(f"s{i}", len(t)) for i, t in enumerate(tables)]
    found = scan(
        chunks(),
        slides,
        score_chunk=lambda c: score(c.pixels, c.slot, c.tile),
        memory_size=memory_size,
        read_again=again,
    )
    return found, read_again


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    queries=st.integers(1, 2),
    heads=st.integers(1, 4),
    memory_size=st.integers(1, 40),
    chunk_size=st.integers(1, 50),
)
def test_equals_full_softmax_whatever_order_chunk_size_and_company(
    seed, sizes, queries, heads, memory_size, chunk_size
):
    rng = np.random.default_rng(seed)
    tables = [rng.normal(0, 3, (n, queries, heads)).astype(np.float32) for n in sizes]
    order = rng.permutation(sum(sizes))
    found, _ = run(tables, memory_size, chunk_size, order)
    for slot, (selection, table) in enumerate(zip(found, tables, strict=True)):
        assert selection.tiles.tolist() == reference(table, memory_size)
        np.testing.assert_array_equal(selection.pixels, pixels_of(slot, selection.tiles))
        np.testing.assert_array_equal(selection.logits, table)


def test_a_winner_that_left_the_buffer_is_read_again():
    # Head 0 favours tile 0 until tile 2 floods that head; then tile 1, dropped before, beats it again.
    table = np.array([[[5.0, 0.0]], [[0.0, 4.9]], [[9.0, -9.0]], [[9.0, -9.0]]], np.float32)
    found, read_again = run([table], 1, 1, np.arange(4))
    assert found[0].tiles.tolist() == reference(table, 1) == [1]
    assert read_again == [1]
    np.testing.assert_array_equal(found[0].pixels, pixels_of(0, np.array([1])))


def test_equal_scores_are_kept_in_order_of_tile_id():
    table = np.zeros((10, 1, 2), np.float32)
    found, _ = run([table], 4, 3, np.arange(10)[::-1])
    assert found[0].tiles.tolist() == [0, 1, 2, 3]


def test_a_slide_with_fewer_tiles_than_memory_keeps_all():
    table = np.random.default_rng(0).normal(size=(3, 1, 2)).astype(np.float32)
    found, _ = run([table], 16, 2, np.arange(3))
    assert sorted(found[0].tiles.tolist()) == [0, 1, 2]
    assert found[0].score.sum() == pytest.approx(1)


def test_scores_that_are_not_finite_name_the_slide():
    table = np.array([[[np.nan]]], np.float32)
    with pytest.raises(ScoresError, match="slide s0"):
        run([table], 2, 1, np.arange(1))


def test_a_slide_without_a_scanned_tile_is_an_error():
    with pytest.raises(ScoresError, match="slide lonely"):
        scan([], [SlideToScan("lonely", 4)], score_chunk=pytest.fail, memory_size=2, read_again=pytest.fail)
