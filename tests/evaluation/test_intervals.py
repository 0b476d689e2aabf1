"""Slides of one patient: intervals that know of it, and cover."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.classification import _auc, _resamples, share_interval, slide_intervals

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
