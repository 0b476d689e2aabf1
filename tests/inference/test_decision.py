"""Slides that are decided by their tiles, each alone: by hand, and against plain log-odds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from wsi_ips.inference.slide_scores import DECIDING_TILES, by_tiles
from wsi_ips.labels import Task

BINARY, GRADE = Task("label", ("normal", "tumor")), Task("grade", ("none", "low", "high"))
SIGNS = Task("signs", ("x", "y"), "multi")


def both(tumour: np.ndarray) -> np.ndarray:
    return np.stack([1 - tumour, tumour], 1).astype(np.float32)


def test_one_tile_alone_says_what_it_says():
    assert by_tiles(BINARY, both(np.array([0.8]))) == pytest.approx((0.2, 0.8), abs=1e-6)
    assert by_tiles(SIGNS, np.array([[0.3, 0.9]], np.float32)) == pytest.approx((0.3, 0.9), abs=1e-6)


def test_the_highest_tiles_count_and_no_other():
    odds = np.linspace(-5, 3, 40)
    expected = expit(np.sort(odds)[-DECIDING_TILES:].mean())
    found = by_tiles(BINARY, both(expit(np.random.default_rng(0).permutation(odds))))
    assert found == pytest.approx((1 - expected, expected), abs=1e-6)
    lower = by_tiles(BINARY, both(expit(np.where(odds < 1, -9.0, odds))))  # those that do not count, lower still
    assert lower == pytest.approx(found, abs=1e-6)


def test_each_class_has_tiles_of_its_own():
    """Tiles of the second class and tiles of the third: neither hides the other."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (60, 3))
    found = by_tiles(GRADE, softmax(logits, axis=1).astype(np.float32))
    logs = log_softmax(logits, axis=1)
    ahead = [0.0, *(np.sort(logs[:, c] - logs[:, 0])[-DECIDING_TILES:].mean() for c in (1, 2))]
    assert found == pytest.approx(tuple(softmax(ahead)), abs=1e-5)
    assert sum(found) == pytest.approx(1)


def test_certain_tiles_stay_finite():
    for task, values in ((BINARY, both(np.array([0.0, 1.0] * 20))), (SIGNS, np.array([[0, 1], [1, 0]], np.float32))):
        assert all(0 <= p <= 1 for p in by_tiles(task, values))
