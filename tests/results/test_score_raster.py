"""The raster: cells, overlaps, gaps, and refusals instead of misplaced maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.results.scenes import SCENES, scene
from wsi_ips.errors import ScoresError, TileIndexError
from wsi_ips.geometry import Box, Scale
from wsi_ips.results.score_maps import attention_rank
from wsi_ips.results.score_raster import tile_raster

BOUNDS = Box(11, 7, 500, 300)


def raster(x: list, y: list, score: list, *, stride: Scale, tile: Scale):
    return tile_raster(
        np.array(x, np.int32),
        np.array(y, np.int32),
        np.array(score),
        bounds=BOUNDS,
        stride_px0=stride,
        footprint_px0=tile,
    )


def test_a_cell_is_a_stride_and_what_has_no_tile_is_nan() -> None:
    got = raster([11, 71], [7, 57], [0.25, 0.75], stride=Scale(30, 50), tile=Scale(30, 50))
    nan = np.nan
    np.testing.assert_array_equal(got.values, np.float32([[0.25, nan, nan], [nan, nan, 0.75]]))
    assert (got.origin_px0, got.cell_px0, got.values.dtype) == ((11, 7), (30, 50), np.float32)


def test_overlapping_tiles_are_averaged_by_the_area_they_cover() -> None:
    # Tiles of 1.5 cells, 20 px apart: the second cell is covered wholly by the second tile, by half by the first.
    got = raster([11, 31], [7, 7], [0.0, 0.9], stride=Scale(20, 30), tile=Scale(30, 30))
    np.testing.assert_allclose(got.values, [[0.0, 0.9 / 1.5, 0.9]], rtol=1e-6)


def test_no_position_without_a_tile_has_a_value_and_every_covered_one_has() -> None:
    for name, options in SCENES.items():
        s = scene(**options)
        keep = np.random.default_rng(3).random(len(s.corners)) < 0.4
        xs, ys = np.arange(0, 1400) + 0.5, np.arange(0, 900) + 0.5
        got = np.isfinite(s.raster(np.ones(len(s.corners)), keep).sample(xs, ys))
        width, height = s.plan.footprint_px0
        covered = np.zeros(got.shape, bool)
        for x, y in s.corners[keep]:
            covered |= ((ys >= y) & (ys < y + height))[:, None] & ((xs >= x) & (xs < x + width))[None]
        wrong = got != covered
        rows, columns = wrong.any(1).sum(), wrong.any(0).sum()
        # corners are rounded to level-0 pixels, the raster is not: a pixel at an edge may differ, no more
        assert wrong.sum() <= 2 * (width + height) * keep.sum(), (name, rows, columns)
        shrunk = (
            covered
            & np.roll(covered, 1, 0)
            & np.roll(covered, -1, 0)
            & np.roll(covered, 1, 1)
            & np.roll(covered, -1, 1)
        )
        grown = (
            covered
            | np.roll(covered, 1, 0)
            | np.roll(covered, -1, 0)
            | np.roll(covered, 1, 1)
            | np.roll(covered, -1, 1)
        )
        assert not (shrunk & ~got).any(), name
        assert not (got & ~grown & ~np.roll(grown, 1, 0) & ~np.roll(grown, -1, 0)).any(), name


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), unique=True, min_size=1), st.floats(20, 33))
def test_scores_come_back_at_the_middle_of_their_tiles(cells: list, stride: float) -> None:
    columns, rows = np.array(cells).T
    x, y = 11 + np.rint(columns * stride), 7 + np.rint(rows * stride * 1.1)
    score = np.linspace(0, 1, len(cells))
    got = raster(x, y, score, stride=Scale(stride, stride * 1.1), tile=Scale(stride, stride * 1.1))
    back = [
        got.sample(np.array([a + stride / 2]), np.array([b + stride * 0.55]))[0, 0] for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(back, score, atol=1e-6)


def test_no_tiles_make_an_empty_raster() -> None:
    got = raster([], [], [], stride=Scale(30, 30), tile=Scale(30, 30))
    assert np.isnan(got.values).all()
    assert np.isnan(got.sample(np.array([20.0]), np.array([20.0]))).all()


@pytest.mark.parametrize(("x", "stride"), [(26, 30.0), (-19, 30.0), (11 + 300, 31.0)])
def test_tiles_off_the_grid_are_refused(x: int, stride: float) -> None:
    with pytest.raises(TileIndexError, match="tile the slide again"):
        raster([11, x], [7, 7], [0.1, 0.2], stride=Scale(stride, 30), tile=Scale(30, 30))


@pytest.mark.parametrize("score", [[0.1, np.nan], [0.1]])
def test_missing_scores_are_refused(score: list) -> None:
    with pytest.raises(ScoresError, match="2 tiles need as many finite scores; predict the slide again"):
        raster([11, 41], [7, 7], score, stride=Scale(30, 30), tile=Scale(30, 30))


def test_attention_becomes_a_rank_within_the_slide() -> None:
    np.testing.assert_allclose(attention_rank(np.array([3e-9, 0.7, 1e-9])), [0.5, 1, 0])
    np.testing.assert_allclose(attention_rank(np.array([0.2, 0.2, 0.6])), [0.25, 0.25, 1])
    np.testing.assert_array_equal(attention_rank(np.array([0.4])), [1])
    assert attention_rank(np.zeros(0)).shape == (0,)
    with pytest.raises(ScoresError, match="scores are not finite"):
        attention_rank(np.array([0.1, np.nan]))
