"""Tile figures: hand-made slides, and errors instead of silent NaN."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.localisation import false_alarm_mm2, pointing_hit, tile_figures

FRACTION = np.array([0.0, 0.5, 0.51, 1.0, 0.2], np.float32)


def test_a_tile_is_tumour_when_more_than_half_of_it_is() -> None:
    figures = tile_figures(FRACTION, np.array([0.1, 0.2, 0.3, 0.4, 0.0]))
    assert (figures.auc, figures.pr_auc, figures.tumour_tiles, figures.tiles) == (1.0, 1.0, 2, 5)


def test_edge_tiles_count_as_false_alarms_too() -> None:
    figures = tile_figures(FRACTION, np.array([0.0, 0.9, 0.3, 0.4, 0.0]))
    assert figures.auc == pytest.approx(4 / 6)
    assert figures.pr_auc == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_pointing_game() -> None:
    assert pointing_hit(FRACTION, np.array([0.0, 0.1, 0.9, 0.2, 0.3]))
    assert not pointing_hit(FRACTION, np.array([0.0, 0.9, 0.1, 0.2, 0.3]))
    assert not pointing_hit(FRACTION, np.zeros(5))  # equals: the first
    assert not pointing_hit(np.zeros(5), FRACTION)  # no tumour tile to hit


def test_false_alarm_area_counts_tissue_not_glass() -> None:
    score, tissue = np.array([0.5, 0.49, 0.9]), np.array([0.25, 1.0, 1.0])
    assert false_alarm_mm2(score, tissue, tile_mm2=0.04, threshold=0.5) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("fraction", "score", "said"),
    [
        ([0.0, 1.0], [0.1, np.nan], "1 tile scores are not finite"),
        ([0.0, np.nan], [0.1, 0.2], "1 tile fractions are not finite"),
        ([0.0, 1.0, 1.0], [0.1, 0.2], "one of each per tile"),
        ([], [], "one of each per tile"),
    ],
)
def test_bad_numbers_are_errors_in_every_figure(fraction: list, score: list, said: str) -> None:
    fractions, scores = np.array(fraction), np.array(score)
    with pytest.raises(EvaluationError, match=said):
        tile_figures(fractions, scores)
    with pytest.raises(EvaluationError, match=said):
        pointing_hit(fractions, scores)
    with pytest.raises(EvaluationError, match=said):
        false_alarm_mm2(scores, fractions, tile_mm2=0.01, threshold=0.5)


@pytest.mark.parametrize(("fraction", "said"), [([0.0, 0.1], "0 of 2"), ([1.0, 0.9], "2 of 2")])
def test_one_kind_of_tile_has_no_tile_auc(fraction: list, said: str) -> None:
    with pytest.raises(EvaluationError, match=f"{said} tiles are tumour: a tile AUC needs both kinds"):
        tile_figures(np.array(fraction), np.array([0.1, 0.2]))
