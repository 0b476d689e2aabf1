"""All slides are divided evenly between processes, and how they are divided changes nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tests.cohort import textured_slide
from tests.training.test_loop import COMPUTE, small_net
from wsi_ips.scanning import ScanOptions, plain_patches, scan_slides
from wsi_ips.tiles.stream import read_tiles
from wsi_ips.training.loss import SlideLosses
from wsi_ips.training.processes import UNEVEN, Piece, divide, join_shared, piece_requests
from wsi_ips.training.step import StepFigures, among_all

SIZES = [[5], [200_000], [9, 4, 4], [1, 1, 1], [100, 90, 80, 70, 60], [50_000, 10, 10, 10], [3, 1]]


@pytest.mark.parametrize("tiles", SIZES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("whole", [False, True])
def test_every_tile_is_scanned_once_and_every_slide_learned_by_one_that_scans_it(tiles, ranks, whole):
    shares = divide(tiles, ranks, whole=whole)
    assert len(shares.pieces) == ranks
    seen = [np.zeros(count, int) for count in tiles]
    for some in shares.pieces:
        for piece in some:
            assert len(piece) > 0
            seen[piece.slide][piece.start : piece.stop] += 1
    assert all((count == 1).all() for count in seen)
    for slide, owner in enumerate(shares.owners):
        assert slide in {piece.slide for piece in shares.pieces[owner]}
    assert sorted(slide for rank in range(ranks) for slide in shares.owned(rank)) == list(range(len(tiles)))
    if whole:
        assert shares.shared == []


@pytest.mark.parametrize("tiles", [s for s in SIZES if sum(s) >= 100])
@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_processes_finish_together(tiles, ranks):
    load = [sum(map(len, some)) for some in divide(tiles, ranks).pieces]
    assert max(load) <= UNEVEN * sum(tiles) / ranks + 1


def test_slides_stay_whole_where_that_is_even_enough():
    assert divide([100, 90, 80, 71], 2).shared == []
    assert divide([100, 90, 80, 71], 1).pieces == (tuple(Piece(i, 0, n) for i, n in enumerate([100, 90, 80, 71])),)
    assert divide([1000, 10], 2).shared == [0]


class Heard:
    """A process that has heard what the others say."""

    def __init__(self, rank: int, told: list) -> None:
        self.rank, self.told = rank, told

    def gather(self, mine: object) -> list:
        return self.told


def test_a_slide_scanned_by_several_keeps_the_tiles_and_pixels_of_a_scan_by_one():
    net, prepare = small_net().eval(), plain_patches(torch.device("cpu"))
    slides = [textured_slide("big", label=1, seed=1, columns=10, rows=6), textured_slide("small", label=0, seed=2)]
    requests = [slides[0].only(np.arange(3, 57, dtype=np.int32)), slides[1].at_slot(1)]
    scan = partial(scan_slides, net, prepare=prepare, options=ScanOptions(7, COMPUTE))
    whole = scan([requests[0]])[0]
    shares = divide([len(request.wanted) for request in requests], 3)
    assert 0 in shares.shared
    found = [dict(zip(some, scan(piece_requests(some, requests)), strict=True)) for some in shares.pieces]
    nothing = {"tiles": np.zeros(0, np.int64), "pixels": np.zeros((0, 1, 1, 3), np.uint8), "score": np.zeros(0)}
    told = [
        [(p.slide, replace(best, **nothing)) for p, best in some.items() if p.slide in shares.shared] for some in found
    ]
    owner = shares.owners[0]
    world = Heard(owner, told)
    one = join_shared(world, shares, found[owner], requests, memory_size=7)[0]
    assert one.tiles.tolist() == whole.tiles.tolist()
    np.testing.assert_array_equal(one.pixels, whole.pixels)
    np.testing.assert_array_equal(one.scanned, whole.scanned)
    np.testing.assert_allclose(one.logits, whole.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(one.pixels, read_tiles(slides[0].only(one.tiles.astype(np.int32))))


def test_own_embeddings_stand_in_their_rows_among_all():
    table, mask = among_all(torch.ones(2, 3, 4), [2, 0], [2, 5, 3])
    assert table.shape == (3, 5, 4)
    assert mask.sum(1).tolist() == [2, 5, 3]
    assert table.sum((1, 2)).tolist() == [12, 0, 12]


def test_figures_of_a_step_are_the_sum_of_what_each_process_filled_in():
    parts = [StepFigures.empty(3, classes=2, width=4) for _ in range(2)]
    logits, entropy = torch.arange(6.0).view(3, 2), torch.tensor([0.1, float("nan"), 0.3])
    for part, own in zip(parts, ([1], [0, 2]), strict=True):
        found = SlideLosses(torch.tensor(float(len(own))), logits, entropy, torch.tensor(float(len(own))))
        part.add(own, found, {own[0]: np.array([0, 70_001, 3])})
    whole = StepFigures(parts[0].table + parts[1].table, classes=2)
    assert whole.loss == 3
    assert torch.equal(whole.logits, logits)
    assert whole.entropy.isnan().tolist() == [False, True, False]
    assert whole.best(0).tolist() == whole.best(1).tolist() == [0, 70_001, 3]
    assert whole.best(2).tolist() == []
