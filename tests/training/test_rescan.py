"""Between full scans the best by their last score are scanned, and others by chance; each slide in full first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training.test_loop import COMPUTE, cohort, small_net, trainer
from wsi_ips.model.selection import Selection
from wsi_ips.training import loop
from wsi_ips.training.rescan import LastScores


def scanned(tiles: list[int], scores: list[float]) -> Selection:
    logits = np.array(scores, np.float32)[:, None, None]
    ids = np.array(tiles, np.int64)
    return Selection(ids[:0], np.empty((0, 4, 4, 3), np.uint8), np.empty(0), ids, logits, None)


def test_the_best_and_some_others():
    last = LastScores(best=0.2, random=0.3)
    assert last.partial("s", at_least=1, rng=np.random.default_rng(0)) is None
    last.keep("s", 10, scanned(list(range(10)), [0, 9, 0, 8, 0, 0, 0, 0, 0, 0]))
    drawn = [last.partial("s", at_least=1, rng=np.random.default_rng(seed)) for seed in range(30)]
    for tiles in drawn:
        assert {1, 3} <= set(tiles.tolist())
        assert len(tiles) == len(set(tiles.tolist())) == 5
        assert (np.diff(tiles) > 0).all()
    assert set(np.concatenate(drawn).tolist()) == set(range(10))


def test_scores_of_tiles_that_were_not_scanned_stay():
    last = LastScores(best=0.2, random=0.0)
    last.keep("s", 10, scanned(list(range(10)), [0, 9, 0, 8, 0, 0, 0, 0, 0, 0]))
    last.keep("s", 10, scanned([1, 4], [-5, 20]))
    assert last.partial("s", at_least=1, rng=np.random.default_rng(0)).tolist() == [3, 4]


def test_never_fewer_than_are_to_be_kept():
    last = LastScores(best=0.0, random=0.0)
    last.keep("s", 10, scanned(list(range(10)), list(range(10))))
    assert last.partial("s", at_least=3, rng=np.random.default_rng(0)).tolist() == [7, 8, 9]


@pytest.mark.parametrize(("every", "expected"), [(1, [28, 28, 28, 28]), (3, [28, 7, 7, 28])])
def test_tiles_scanned_per_epoch(monkeypatch, every, expected):
    counts: list[int] = []
    plain = loop.scan_slides

    def counting(net, requests, **named):
        counts.extend(len(request.wanted) for request in requests)
        return plain(net, requests, **named)

    monkeypatch.setattr(loop, "scan_slides", counting)
    torch.manual_seed(0)
    chosen = {"rescan_every": every, "rescan_best": 0.1, "rescan_random": 0.072, "epochs": 4}
    trainer(small_net(), COMPUTE, **chosen).fit(cohort(2), [], on_epoch=lambda _: None)
    assert counts == [count for count in expected for _ in range(2)]
