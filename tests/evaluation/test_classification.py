"""Slide figures: known values, intervals that cover, errors that say why."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from sklearn import metrics

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.classification import (
    _auc,
    _average_precision,
    _resamples,
    auc_with_interval,
    roc_curve,
    share_interval,
    slide_intervals,
    slide_metrics,
)

TRUTH = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])
SCORE = np.array([0.1, 0.4, 0.4, 0.35, 0.8, 0.3, 0.8, 0.9, 0.95])


def binormal(rng: np.random.Generator, positives: int, negatives: int) -> tuple[np.ndarray, np.ndarray]:
    score = np.concatenate([rng.normal(1.0, 1, positives), rng.normal(0, 1, negatives)])
    return np.repeat([1, 0], [positives, negatives]), score


def delong_by_definition(truth: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """AUC and variance as DeLong et al. write them: every pair compared, no ranks."""
    positive, negative = score[truth == 1], score[truth == 0]
    psi = np.array([[(p > n) + 0.5 * (p == n) for n in negative] for p in positive])
    variance = psi.mean(1).var(ddof=1) / len(positive) + psi.mean(0).var(ddof=1) / len(negative)
    return psi.mean(), variance


def test_auc_counts_the_pairs_in_the_right_order_and_ties_half() -> None:
    assert auc_with_interval(TRUTH, SCORE).value == pytest.approx(delong_by_definition(TRUTH, SCORE)[0])
    assert auc_with_interval(TRUTH, SCORE).value == pytest.approx(15.5 / 20)


def test_the_interval_is_delongs_on_the_logit_scale() -> None:
    value, variance = delong_by_definition(TRUTH, SCORE)
    got = auc_with_interval(TRUTH, SCORE, confidence=0.9)
    half = 1.6448536269514722 * variance**0.5 / (value * (1 - value))
    logits = [np.log(end / (1 - end)) for end in (got.low, got.high)]
    assert logits == pytest.approx([np.log(value / (1 - value)) - half, np.log(value / (1 - value)) + half])
    assert got.method == "DeLong"


def test_ninety_five_percent_intervals_cover_the_true_auc() -> None:
    rng, true_auc = np.random.default_rng(5), 0.7602499  # of two unit normals one apart
    intervals = [auc_with_interval(*binormal(rng, 20, 35)) for _ in range(400)]
    assert 0.92 <= np.mean([i.low <= true_auc <= i.high for i in intervals]) <= 0.985


@pytest.mark.parametrize(("sign", "value"), [(1, 1.0), (-1, 0.0)])
def test_a_whole_separation_is_no_certainty(sign: int, value: float) -> None:
    got = auc_with_interval([0, 0, 0, 1, 1, 1, 1], sign * np.arange(7.0))
    assert got.value == value
    assert got.high - got.low == pytest.approx(1 - 0.025 ** (1 / 3))
    assert 0 <= got.low < got.high <= 1


def test_equal_scores_say_nothing() -> None:
    got = auc_with_interval([0, 1, 1], [0.5, 0.5, 0.5])
    assert (got.value, got.low, got.high, got.method) == (0.5, 0.0, 1.0, "undetermined")


def test_a_single_positive_leaves_the_interval_open() -> None:
    got = auc_with_interval([0, 0, 0, 1], [0.1, 0.2, 0.9, 0.5])
    assert (got.low, got.high) == (0.0, 1.0)


@pytest.mark.parametrize("figure", [auc_with_interval, roc_curve, slide_metrics, slide_intervals])
@pytest.mark.parametrize(
    ("truth", "score", "said"),
    [
        ([1, 1], [0.1, 0.2], "2 positive and 0 negative cases"),
        ([0, 0, 0], [0.1, 0.2, 0.3], "0 positive and 3 negative cases"),
        ([], [], "0 positive and 0 negative"),
        ([0, 1, 1], [0.1, np.nan, np.inf], "2 scores are not finite; predict again"),
        ([0, np.nan, 1], [0.1, 0.2, 0.3], "truth must be 0 or 1"),
        ([0, 2], [0.1, 0.2], "truth must be 0 or 1"),
        ([0, 1, 1], [0.1, 0.2], "do not match"),
        ([[0, 1]], [[0.1, 0.2]], "do not match"),
    ],
)
def test_what_cannot_be_computed_is_said(figure: object, truth: list, score: list, said: str) -> None:
    with pytest.raises(EvaluationError, match=re.escape(said)):
        figure(truth, score)  # type: ignore[operator]


def test_scores_that_are_no_probabilities_have_no_brier_score() -> None:
    with pytest.raises(EvaluationError, match=r"-0\.5 to 3; probabilities lie in 0-1"):
        slide_metrics([0, 1], [-0.5, 3.0])


def test_metrics_against_numbers_worked_by_hand() -> None:
    got = slide_metrics([0, 0, 0, 1, 1], [0.1, 0.5, 0.2, 0.5, 0.4], threshold=0.5)
    assert got["sensitivity"] == pytest.approx(1 / 2)
    assert got["specificity"] == pytest.approx(2 / 3)  # 0.5 itself is called positive
    assert got["balanced_accuracy"] == pytest.approx(7 / 12)
    assert got["brier"] == pytest.approx((0.01 + 0.25 + 0.04 + 0.25 + 0.36) / 5)
    assert got["pr_auc"] == pytest.approx((0.5 + 2 / 3) / 2)


def test_every_figure_lies_in_its_interval_and_the_interval_in_0_to_1() -> None:
    intervals, values = slide_intervals(TRUTH, SCORE), slide_metrics(TRUTH, SCORE)
    assert set(intervals) == {"auc", "auc_bootstrap", *values}
    for name, interval in intervals.items():
        assert 0 <= interval.low <= interval.value <= interval.high <= 1, name
        assert interval.value == pytest.approx(values.get(name, interval.value))
        assert (interval.positives, interval.negatives) == (4, 5)


def test_intervals_repeat_and_narrow_with_cases() -> None:
    few, many = slide_intervals(TRUTH, SCORE), slide_intervals(np.tile(TRUTH, 40), np.tile(SCORE, 40))
    assert few == slide_intervals(TRUTH, SCORE)
    for name in few:
        assert many[name].high - many[name].low < 0.5 * (few[name].high - few[name].low), name


def test_no_figure_of_a_whole_separation_has_zero_width() -> None:
    intervals = slide_intervals([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    assert all(i.low < i.high for i in intervals.values())


def test_order_of_the_cases_does_not_matter() -> None:
    turned = np.random.default_rng(1).permutation(len(TRUTH))
    straight, mixed = slide_metrics(TRUTH, SCORE), slide_metrics(TRUTH[turned], SCORE[turned])
    assert mixed == pytest.approx(straight)


def test_the_bootstraps_average_precision_is_the_librarys_on_the_same_draw() -> None:
    rng = np.random.default_rng(2)
    weights = rng.integers(0, 4, (30, len(TRUTH))).astype(float)
    weights[:, [0, 6]] += 1  # both classes in every draw
    got = _average_precision(TRUTH, SCORE, weights)
    for row, value in zip(weights.astype(int), got, strict=True):
        assert value == pytest.approx(metrics.average_precision_score(TRUTH.repeat(row), SCORE.repeat(row)))


def test_the_roc_curve_runs_from_corner_to_corner_and_its_area_is_the_auc() -> None:
    false, true = roc_curve(TRUTH, SCORE)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert all(b >= a for a, b in itertools.pairwise(false))
    assert np.trapezoid(true, false) == pytest.approx(auc_with_interval(TRUTH, SCORE).value)


TRUE_AUC = 0.7602499
"""Of two unit normals one apart."""


def clustered(
    rng: np.random.Generator, patients: int = 40, slides: int = 5
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Five slides of each patient, of one class, with scores that hardly differ within the patient."""
    truth = np.repeat(np.arange(patients) % 2, slides)
    shared, own = rng.normal(size=patients), rng.normal(size=patients * slides)
    score = truth + np.sqrt(0.9) * np.repeat(shared, slides) + np.sqrt(0.1) * own
    return truth, 1 / (1 + np.exp(-score)), [f"p{i}" for i in np.repeat(np.arange(patients), slides)]


def test_by_patient_the_interval_covers_and_by_slide_it_does_not():
    rng = np.random.default_rng(11)
    cohorts = [clustered(rng) for _ in range(100)]
    naive = [slide_intervals(t, s, resamples=200)["auc"] for t, s, _ in cohorts]
    aware = [slide_intervals(t, s, patients=p, resamples=200)["auc_bootstrap"] for t, s, p in cohorts]
    assert np.mean([i.low <= TRUE_AUC <= i.high for i in aware]) >= 0.88
    assert np.mean([i.low <= TRUE_AUC <= i.high for i in naive]) <= 0.75
    assert {i.method for i in aware} == {"bootstrap by patient"}


def test_the_share_of_slides_covers_by_patient_too():
    """Beta-binomial patients: the share of calls differs from patient to patient, 0.7 on average."""
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(150):
        rates = rng.beta(2.1, 0.9, 40)
        hits = rng.random(200) < np.repeat(rates, 5)
        found = share_interval(hits, [f"p{i}" for i in np.repeat(np.arange(40), 5)], resamples=300)
        covered.append(found.low <= 0.7 <= found.high)
    assert np.mean(covered) >= 0.88


def test_slides_without_a_patient_are_patients_of_their_own():
    rng = np.random.default_rng(0)
    truth, score, _ = clustered(rng)
    assert slide_intervals(truth, score) == slide_intervals(truth, score, patients=[""] * len(truth))


def test_the_bootstrap_of_independent_slides_agrees_with_delong():
    rng = np.random.default_rng(2)
    truth = np.repeat([0, 1], 150)
    score = 1 / (1 + np.exp(-(truth + rng.normal(size=300))))
    found = slide_intervals(truth, score)
    assert found["auc_bootstrap"].low == pytest.approx(found["auc"].low, abs=0.01)
    assert found["auc_bootstrap"].high == pytest.approx(found["auc"].high, abs=0.01)


def test_the_auc_of_a_resample_is_the_librarys():
    rng = np.random.default_rng(5)
    truth, score = np.array([0, 1, 0, 1, 1, 0]), np.array([0.2, 0.2, 0.5, 0.5, 0.9, 0.9])
    weights = rng.integers(1, 4, (20, 6)).astype(float)
    expected = [metrics.roc_auc_score(truth, score, sample_weight=row) for row in weights]
    assert _auc(truth, score, weights) == pytest.approx(expected)


def test_every_resample_holds_both_classes_and_whole_patients():
    labels, groups = np.array([1, 1, 0, 0, 1, 0]), np.array([0, 0, 1, 2, 3, 3])
    weights = np.concatenate(list(_resamples(labels, groups, 500)))
    assert len(weights) == 500
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 4] == weights[:, 5]).all()
    assert (weights[:, labels == 1].sum(1) > 0).all()
    assert (weights[:, labels == 0].sum(1) > 0).all()


def test_blocks_of_resamples_do_not_change_the_draw(monkeypatch):
    truth, score, patients = clustered(np.random.default_rng(3))
    whole = slide_intervals(truth, score, patients=patients, resamples=64)
    monkeypatch.setattr("wsi_ips.evaluation.classification.CELLS_AT_A_TIME", 64 * len(truth))
    assert slide_intervals(truth, score, patients=patients, resamples=64) == whole


def test_all_right_is_no_certainty_and_rests_on_patients():
    of_patients = share_interval([True] * 20, [f"p{i // 5}" for i in range(20)])
    of_slides = share_interval([True] * 20)
    assert of_patients.low == pytest.approx(0.025 ** (1 / 4))
    assert of_slides.low == pytest.approx(0.025 ** (1 / 20))
    truth = [0] * 10 + [1] * 10
    separated = slide_intervals(truth, np.linspace(0.1, 0.9, 20), patients=[f"p{i // 5}" for i in range(20)])
    assert separated["auc_bootstrap"].low == pytest.approx(0.025 ** (1 / 2))
    assert separated["balanced_accuracy"].low < 1


def test_what_cannot_be_used_is_refused():
    with pytest.raises(EvaluationError, match="1 patients for 2 slides"):
        slide_intervals([0, 1], [0.1, 0.2], patients=["a"])
    with pytest.raises(EvaluationError, match="at least one"):
        share_interval([])
