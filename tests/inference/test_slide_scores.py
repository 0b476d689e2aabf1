"""Scores of a slide are stored and read back whole; its classes follow from them."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import zarr
from scipy.special import expit, log_softmax, softmax

from tests.cohort import textured_slide
from wsi_ips.config import ComputeSection
from wsi_ips.errors import ScoresError
from wsi_ips.evaluation.calibration import TaskCalibration, calibrated
from wsi_ips.inference.slide_prediction import predict_slide
from wsi_ips.inference.slide_scores import DECIDING_TILES, SlideScores, by_tiles, read_scores, verdict, write_scores
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.scanning import ScanOptions

BINARY, GRADE = Task("label", ("normal", "tumor")), Task("grade", ("none", "low", "high"))
SIGNS = Task("signs", ("x", "y"), "multi")
LETTERS = Task("grade", ("a", "b", "c"))


@pytest.fixture(scope="module")
def scores() -> SlideScores:
    torch.manual_seed(2)
    net = IpsNet(
        build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False)), NetSettings(heads=2, key_width=4)
    )
    with torch.no_grad():  # an untrained head gives 0.5 to everything
        net.head.weight.mul_(4)
    options = ScanOptions(9, ComputeSection(device="cpu", chunk_size=8))
    return predict_slide(net, textured_slide("s", label=1, seed=3), options, fingerprint="f")


def test_what_is_written_is_read_back(tmp_path, scores):
    write_scores(tmp_path, scores)
    again = read_scores(tmp_path, "s")
    for field in fields(SlideScores):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(scores, field.name))


def test_a_table_of_another_schema_or_without_an_array_is_refused(tmp_path, scores):
    write_scores(tmp_path, scores)
    group = zarr.open_group(tmp_path / "s", mode="r+")
    del group["kept_embeddings"]
    with pytest.raises(ScoresError, match="damaged"):
        read_scores(tmp_path, "s")
    group.attrs["schema_version"] = 3
    with pytest.raises(ScoresError, match="another version"):
        read_scores(tmp_path, "s")


def test_the_second_opinion_is_the_mean_of_the_sixteen_highest_tiles(scores):
    highest = sorted(scores.tile_probability[:, 1].tolist(), reverse=True)[:16]
    assert scores.highest_tiles == pytest.approx(np.mean(highest), abs=1e-6)
    few = replace(scores, tile_probability=scores.tile_probability[:3])
    assert few.highest_tiles == pytest.approx(scores.tile_probability[:3, 1].mean(), abs=1e-6)


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


def test_without_a_background_class_the_strongest_tiles_of_every_class_count():
    """Most tiles lean to neither; the few of the first class weigh as much as those of the last."""
    assert by_tiles(LETTERS, np.array([[0.2, 0.5, 0.3]], np.float32)) == pytest.approx((0.2, 0.5, 0.3), abs=1e-6)
    subtypes = Task("label", ("luad", "lusc"))
    odds = np.concatenate([np.full(12, -4.0), np.full(30, 0.1), np.full(10, 2.0)])
    assert by_tiles(subtypes, both(expit(odds)))[0] == pytest.approx(expit(1.0), abs=1e-5)
    assert by_tiles(BINARY, both(expit(odds)))[0] == pytest.approx(expit(-2.0), abs=1e-5)


def test_certain_tiles_stay_finite():
    for task, values in ((BINARY, both(np.array([0.0, 1.0] * 20))), (SIGNS, np.array([[0, 1], [1, 0]], np.float32))):
        assert all(0 <= p <= 1 for p in by_tiles(task, values))


def test_temperature_divides_the_logits():
    logits = np.array([1.0, -2.0, 0.5])
    found = calibrated(LETTERS, tuple(softmax(logits)), 2.5)
    np.testing.assert_allclose(found, softmax(logits / 2.5), rtol=1e-12)
    found = calibrated(SIGNS, tuple(expit(logits[:2])), 2.5)
    np.testing.assert_allclose(found, expit(logits[:2] / 2.5), rtol=1e-12)


def test_temperature_one_changes_no_bit():
    raw = (1e-30, 1 - 1e-30)
    assert calibrated(BINARY, raw, 1.0) is raw


@pytest.mark.parametrize(("threshold", "answer"), [(0.62, "tumor"), (0.63, "normal")])
def test_the_threshold_is_one_of_calibrated_probabilities(threshold, answer):
    raw = (0.2689414213699951, 0.7310585786300049)  # log-odds 1; at temperature 2: 0.6225
    found = verdict(BINARY, raw, TaskCalibration("label", 2.0, (threshold,)))
    assert found.raw == raw
    assert found.probability[1] == pytest.approx(0.62246, abs=1e-5)
    assert found.answer == answer
