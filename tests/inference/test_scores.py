"""What is stored of a slide says what the decision rests on: left out tiles and evidence against the network itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.cohort import PATCH_PX, textured_slide
from wsi_ips.config import ComputeSection
from wsi_ips.inference import SlideScores, predict_slide, read_scores, write_scores
from wsi_ips.labels import Task
from wsi_ips.model import IpsNet, ModelCard, build_encoder, encoder_spec
from wsi_ips.model.net import to_float
from wsi_ips.tiles import read_tiles

TWO = (Task("label", ("normal", "tumor")),)
THREE = (Task("label", ("a", "b", "c")), Task("more", ("d",), "multi"))
SLIDE = textured_slide("s", label=1, seed=3)


def network(tasks: tuple[Task, ...], *, evidence: bool, pooling: str = "attention") -> IpsNet:
    torch.manual_seed(2)
    spec = encoder_spec("resnet18-1", norm="auto", has_weights=False)
    net = IpsNet(build_encoder(spec), tasks=tasks, heads=2, key_width=4, evidence=evidence, pooling=pooling).eval()
    with torch.no_grad():  # tiles must differ in what they say and how much they count
        net.encoder.start(to_float(torch.from_numpy(read_tiles(SLIDE))))
        net.head.weight.mul_(4)
    return net


def predicted(net: IpsNet, *, memory_size: int = 9) -> SlideScores:
    spec = encoder_spec("resnet18-1", norm="auto", has_weights=False)
    card = ModelCard("untrained", net.tasks, spec, 2, 4, 0.1, memory_size, 0.5, PATCH_PX, "", {})
    return predict_slide(
        net, card, SLIDE, compute=ComputeSection(chunk_size=8), device=torch.device("cpu"), fingerprint="f"
    )


def margin(probability: np.ndarray) -> np.ndarray:
    """Of the last class over the mean of the others, from class probabilities in the last axis."""
    logs = np.log(np.asarray(probability, np.float64))
    return logs[..., -1] - logs[..., :-1].mean(-1)


@pytest.mark.parametrize("pooling", ["attention", "abmil", "mean"])
@pytest.mark.parametrize("tasks", [TWO, THREE])
def test_evidence_of_the_kept_tiles_adds_up_to_the_slide(tasks, pooling):
    scores = predicted(network(tasks, evidence=True, pooling=pooling))
    whole = margin(np.array(scores.probability))
    assert scores.evidence.shape == (28,)
    assert np.ptp(scores.evidence[scores.kept]) > 1e-3
    assert scores.evidence[scores.kept].sum() == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("evidence", [False, True])
@pytest.mark.parametrize("tasks", [TWO, THREE])
def test_left_out_is_the_fall_without_each_kept_tile(tasks, evidence):
    net = network(tasks, evidence=evidence)
    scores = predicted(net)
    assert scores.left_out.shape == scores.kept.shape == (9,)
    with torch.no_grad():
        embeddings = net.encoder(to_float(torch.from_numpy(read_tiles(SLIDE))))
        for kept, fall in zip(scores.kept, scores.left_out, strict=True):
            others = embeddings[np.setdiff1d(scores.kept, kept)]
            logits = net(others[None], torch.ones(1, len(others), dtype=torch.bool))[0]
            without = margin(net.probabilities(logits)[: tasks[0].width].numpy())
            assert fall == pytest.approx(margin(np.array(scores.probability)) - without, abs=1e-4)
    assert np.ptp(scores.left_out) > 1e-3


def test_a_slide_of_one_kept_tile_has_nothing_left_out():
    assert predicted(network(TWO, evidence=False), memory_size=1).left_out.shape == (0,)


def test_margin_of_a_tile_is_the_log_odds_also_where_the_probability_is_1():
    scores = predicted(network(TWO, evidence=False))
    np.testing.assert_allclose(scores.margin, margin(scores.tile_probability), atol=1e-6)
    sure = np.array([[1e-30, 1.0], [1.0, 1e-30], [0.0, 1.0]], np.float32)
    found = SlideScores("s", np.zeros((3, 1, 1), np.float32), sure, np.arange(3), TWO, ((0.5, 0.5),), 0.0, "f").margin
    np.testing.assert_allclose(found[:2], [69.0776, -69.0776], atol=1e-3)
    assert 80 < found[2] < 90


def test_what_is_written_is_read_back(tmp_path):
    scores = predicted(network(TWO, evidence=False))
    write_scores(tmp_path, scores)
    again = read_scores(tmp_path, "s")
    np.testing.assert_array_equal(again.left_out, scores.left_out)
    np.testing.assert_array_equal(again.evidence, scores.evidence)


def test_the_second_opinion_is_the_mean_of_the_sixteen_highest_tiles(tmp_path):
    scores = predicted(network(TWO, evidence=False))
    write_scores(tmp_path, scores)
    highest = sorted(scores.tile_probability[:, 1].tolist(), reverse=True)[:16]
    assert read_scores(tmp_path, "s").highest_tiles == pytest.approx(np.mean(highest), abs=1e-6)
    few = replace(scores, tile_probability=scores.tile_probability[:3])
    assert few.highest_tiles == pytest.approx(scores.tile_probability[:3, 1].mean(), abs=1e-6)
