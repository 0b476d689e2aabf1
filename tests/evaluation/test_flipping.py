"""Patch flipping on models whose decision is known."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation import patch_flipping

TUMOUR = np.zeros(100)
TUMOUR[[7, 50]] = 1.0


def holds_tumour(tiles: np.ndarray) -> float:
    return float(TUMOUR[tiles].any())


def gain(score: np.ndarray, steps: int = 100) -> float:
    return patch_flipping(score, holds_tumour, steps=steps, rng=np.random.default_rng(0)).gain


def test_the_true_order_gains_nearly_everything_and_the_reverse_loses_it() -> None:
    curve = patch_flipping(TUMOUR, holds_tumour, steps=100, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(curve.most_first[:3], [1.0, 1.0, 0.0])  # both have to go
    np.testing.assert_array_equal(curve.least_first, np.ones(100))
    assert curve.removed[[0, -1]] == pytest.approx([0.0, 0.99])
    # trapezoid: the fall from 1 to 0 between the first and the second tile counts half
    assert curve.gain == pytest.approx(1 - 1.5 / 99)
    assert gain(-TUMOUR) == pytest.approx(-(1 - 1.5 / 99))


def test_a_score_that_says_nothing_gains_nothing_on_average() -> None:
    rng = np.random.default_rng(3)
    assert abs(np.mean([gain(rng.random(100)) for _ in range(1000)])) < 0.05
    equal = [patch_flipping(np.zeros(100), holds_tumour, rng=np.random.default_rng(s)).gain for s in range(1000)]
    assert abs(np.mean(equal)) < 0.05  # order of equals is by chance, not by place


def test_the_model_is_asked_on_what_is_left_in_ascending_order_and_never_on_nothing() -> None:
    asked: list[list[int]] = []

    def remember(tiles: np.ndarray) -> float:
        asked.append(tiles.tolist())
        return 0.5

    curve = patch_flipping(np.array([0.3, 0.1, 0.2]), remember, steps=10, rng=np.random.default_rng(0))
    assert asked == [[0, 1, 2], [1, 2], [1], [0, 1, 2], [0, 2], [0]]
    assert curve.gain == 0


@pytest.mark.parametrize("score", [[0.5], [0.5, np.nan]])
def test_what_cannot_be_ordered_is_an_error(score: list) -> None:
    with pytest.raises(EvaluationError, match="patch flipping needs two or more"):
        gain(np.array(score))
