"""FROC by the rule of CAMELYON16: hand-worked cases, and the challenge's own way of counting, written down plainly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.froc import (
    TARGETS,
    Detections,
    Froc,
    Lesions,
    Matched,
    component_detections,
    find_lesions,
    froc_interval,
    match_detections,
    peak_detections,
)
from wsi_ips.evaluation.froc import froc as froc_of_matched
from wsi_ips.geometry import Point, Scale

MPP = 8.0
"""µm per pixel of the masks here: level 5 of 0.25 µm/px."""


def detections(*rows: tuple[float, float, float]) -> Detections:
    """From (x, y, score)."""
    return Detections(*np.array(rows, float).reshape(-1, 3).T)


def froc(slides: list[tuple[Detections, Lesions]]) -> Froc:
    return froc_of_matched([match_detections(*slide) for slide in slides])


def disc(shape: tuple[int, int], centre: tuple[int, int], diameter_um: float) -> np.ndarray:
    y, x = np.indices(shape)
    return np.hypot(x - centre[0], y - centre[1]) * MPP <= diameter_um / 2


def lesions_at(*labels: tuple[slice, slice], itc: tuple[int, ...] = ()) -> Lesions:
    found = np.zeros((20, 20), np.int32)
    for number, where in enumerate(labels, 1):
        found[where] = number
    return Lesions(found, frozenset(itc), 32.0)


LEFT, RIGHT = (slice(0, 5), slice(0, 5)), (slice(10, 15), slice(10, 15))


def test_an_empty_mask_has_no_lesion():
    found = find_lesions(np.zeros((30, 40), bool), mpp=MPP, downsample=32)
    assert not found.labels.any()
    assert found.counted == []


def test_tumour_nearer_than_75_um_is_one_lesion_and_holes_are_filled():
    mask = disc((120, 200), (50, 60), 400)
    mask[55:65, 40:50] = False  # a lumen
    near = mask | disc((120, 200), (50 + 57, 60), 400)  # 57 px of 8 µm apart: 56 µm from edge to edge
    far = mask | disc((120, 200), (50 + 62, 60), 400)  # 96 µm from edge to edge
    assert find_lesions(near, mpp=MPP, downsample=32).labels.max() == 1
    assert find_lesions(far, mpp=MPP, downsample=32).labels.max() == 2
    assert find_lesions(mask, mpp=MPP, downsample=32).labels[60, 45] == 1


@pytest.mark.parametrize(("diameter_um", "is_itc"), [(180, True), (230, False)])
def test_what_is_shorter_than_275_um_once_dilated_is_itc(diameter_um, is_itc):
    """Dilating adds 37.5 µm on both sides, so that 200 µm of tumour are the limit."""
    found = find_lesions(disc((80, 80), (40, 40), diameter_um), mpp=MPP, downsample=32)
    assert (found.itc == {1}) == is_itc
    assert found.counted == ([] if is_itc else [1])


def test_hits_in_a_lesion_count_once_and_outside_each():
    slide = lesions_at(LEFT, RIGHT)
    found = detections((40, 40, 0.9), (50, 50, 0.8), (600, 600, 0.7), (610, 600, 0.6))
    curve = froc([(found, slide)])
    # Thresholds 0.9, 0.7, 0.6: one lesion found, then two false positives; the other lesion is missed.
    assert curve.false_positives.tolist() == [0, 0, 1, 2]
    assert curve.sensitivity.tolist() == [0, 0.5, 0.5, 0.5]
    assert (curve.lesions, curve.slides) == (2, 1)
    assert curve.score == 0.5


def test_isolated_tumour_cells_are_neither_found_nor_missed():
    slide = lesions_at(LEFT, RIGHT, itc=(2,))
    curve = froc([(detections((40, 40, 0.9), (350, 350, 0.8)), slide)])
    assert curve.lesions == 1
    assert curve.false_positives.tolist() == [0, 0]
    assert curve.score == 1


def test_false_positives_are_averaged_over_slides_without_detections_too():
    empty = lesions_at()
    curve = froc(
        [(detections((40, 40, 0.5)), lesions_at(LEFT)), (detections((1, 1, 0.9)), empty), (detections(), empty)]
    )
    np.testing.assert_allclose(curve.false_positives, [0, 1 / 3, 1 / 3])
    assert curve.at(0.25) == 0.0  # the first point with a quarter of a false positive finds nothing yet
    assert curve.at(1.0) == 1.0  # never so many: the last point
    assert curve.score == pytest.approx(5 / 6)


@pytest.mark.parametrize("place", [(640, 0), (-1, 5), (0, 1e12), (-1e300, 0)])
def test_a_detection_off_the_slide_is_a_false_positive_and_the_lesions_stay(place):
    off = (*place, 0.2)
    found = match_detections(detections((40, 40, 0.9), off), lesions_at(LEFT, RIGHT))
    assert (found.false.tolist(), found.best.tolist()) == ([0.2], [0.9, -np.inf])
    assert (found.detections, found.outside) == (2, 1)
    assert froc([(detections(off), lesions_at(LEFT, RIGHT))]).lesions == 2


def test_a_cohort_without_lesions_and_detections_without_a_place_are_refused():
    with pytest.raises(EvaluationError, match="200 µm"):
        froc([(detections((40, 40, 0.9)), lesions_at())])
    for odd in ((np.nan, 0, 0.2), (0, np.inf, 0.2), (0, 0, np.nan)):
        with pytest.raises(EvaluationError, match="no finite score or position"):
            froc([(detections((40, 40, 0.9), odd), lesions_at(LEFT))])
    with pytest.raises(EvaluationError, match="no slide"):
        froc([])


def plain(slides: list[tuple[Detections, Lesions]]) -> tuple[list[float], list[float]]:
    """The challenge's counting, a threshold, a slide and a detection at a time."""
    scores = sorted({s for d, _ in slides for s in d.score}, reverse=True)
    wrong, right, total = [], [], sum(len(lesions.counted) for _, lesions in slides)
    for threshold in scores:
        false, found = 0, set()
        for number, (d, lesions) in enumerate(slides):
            for x, y, score in zip(d.x_px0, d.y_px0, d.score, strict=True):
                if score < threshold:
                    continue
                label = lesions.labels[int(y // lesions.downsample), int(x // lesions.downsample)]
                if label == 0:
                    false += 1
                elif label not in lesions.itc:
                    found.add((number, int(label)))
        wrong.append(false / len(slides))
        right.append(len(found) / total)
    return wrong, right


POINT = st.tuples(st.integers(0, 639), st.integers(0, 639), st.sampled_from([0.1, 0.2, 0.4, 0.6, 0.8, 1.0]))


@given(st.lists(st.lists(POINT, max_size=12), min_size=1, max_size=4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_curve_is_that_of_counting_one_by_one(points, with_itc):
    kinds = [lesions_at(LEFT, RIGHT, itc=(2,) if with_itc else ()), lesions_at(RIGHT), lesions_at()]
    slides = [(detections(*rows), kinds[i % 3]) for i, rows in enumerate(points)]
    curve, (wrong, right) = froc(slides), plain(slides)
    for target in TARGETS:
        reached = [r for w, r in zip(wrong, right, strict=True) if w >= target]
        expected = reached[0] if reached else (right[-1] if right else 0.0)
        assert curve.at(target) == pytest.approx(expected)
    assert (np.diff(curve.false_positives) >= 0).all()
    assert (np.diff(curve.sensitivity) >= 0).all()


CELL, HERE = Scale(100.0, 200.0), Point(1000, 2000)


def test_peaks_leave_out_their_neighbours_within_187_um():
    values = np.full((5, 12), np.nan)
    values[2] = [0.9, 0.8, 0.7, 0.6, 0.95, 0.2, 0.9, 0.1, 0.1, 0.1, 0.6, 0.4]
    found = peak_detections(values, origin_px0=HERE, cell_px0=CELL, mpp=Scale(1.0, 1.0))
    # Cells of 100 µm: two columns on both sides. 0.95 takes 0.7, 0.6 and 0.9 with it; of equals the first is picked.
    assert found.score.tolist() == [0.95, 0.9, 0.6]
    assert found.x_px0.tolist() == [1450.0, 1050.0, 2050.0]
    assert found.y_px0.tolist() == [2500.0] * 3


def test_components_are_one_detection_each_at_their_highest_cell():
    values = np.zeros((6, 8))
    values[0:2, 0:3] = [[0.6, 0.7, 0.6], [0.5, 0.9, 0.5]]
    values[2, 3] = 0.8  # touches by a corner
    values[5, 6:8] = 0.55
    values[4, 0] = np.nan
    found = component_detections(values, origin_px0=HERE, cell_px0=CELL)
    assert found.score.tolist() == [0.9, 0.55]
    assert found.x_px0.tolist() == [1150.0, 1650.0]
    assert found.y_px0.tolist() == [2300.0, 3100.0]


def test_a_map_without_tumour_has_no_detections():
    for values in (np.full((3, 3), 0.2), np.full((3, 3), np.nan)):
        assert len(peak_detections(values, origin_px0=HERE, cell_px0=CELL, mpp=Scale(0.25, 0.25)).score) == 0
        assert len(component_detections(values, origin_px0=HERE, cell_px0=CELL).score) == 0


def test_the_curve_is_monais_where_it_is_installed():
    """MONAI has the same points from the lowest threshold up, without the lowest score: here that of missed lesions."""
    froc_of_monai = pytest.importorskip("monai.metrics").compute_froc_curve_data
    rng = np.random.default_rng(3)
    slides = [match_detections(detections(*(rng.random((9, 3)) * [639, 639, 1])), lesions_at(LEFT)) for _ in range(7)]
    curve = froc_of_matched(slides)
    false, true = (np.concatenate([getattr(s, name) for s in slides]) for name in ("false", "best"))
    assert 0 < np.isfinite(true).sum() < len(true)
    per_slide, sensitivity = froc_of_monai(false, np.where(np.isfinite(true), true, 0), len(true), len(slides))
    np.testing.assert_allclose(curve.false_positives, per_slide[::-1])
    np.testing.assert_allclose(curve.sensitivity, sensitivity[::-1])


def simulated(rng: np.random.Generator, slides: int = 40) -> list[Matched]:
    """Half of the slides hold lesions; those of a slide are alike, as in life."""
    found = []
    for number in range(slides):
        false = rng.random(rng.poisson(1.5)) * 0.8
        ease = rng.normal()
        lesions = 1 / (1 + np.exp(-(0.5 + ease + rng.normal(size=rng.integers(1, 4))))) if number % 2 else np.zeros(0)
        found.append(Matched(false, np.where(lesions > 0.3, lesions, -np.inf)))
    return found


def test_the_interval_of_the_score_covers_that_of_a_very_large_cohort():
    rng = np.random.default_rng(8)
    truth = froc_of_matched(simulated(rng, 20_000)).score
    intervals = [froc_interval(simulated(rng), resamples=300) for _ in range(120)]
    assert 0.87 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.99
    assert all(low < high for low, high in intervals)


def test_a_resample_is_counted_as_a_cohort_would_be(monkeypatch):
    """One resample that draws every slide once is the cohort itself."""
    slides = simulated(np.random.default_rng(1))

    class EverySlideOnce:
        def multinomial(self, count: int, _: np.ndarray) -> np.ndarray:
            return np.ones(count)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: EverySlideOnce())
    assert froc_interval(slides, resamples=1) == pytest.approx((froc_of_matched(slides).score,) * 2)
