"""A slide's prediction follows from what is stored of its tiles, for every pooling; changes are found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.cohort import textured_slide
from wsi_ips.config import ComputeSection
from wsi_ips.errors import ScoresError
from wsi_ips.inference.slide_prediction import predict_slide, recompute
from wsi_ips.inference.slide_scores import read_scores, write_scores
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.model.poolings import POOLINGS
from wsi_ips.scanning import ScanOptions

ONE = (Task("label", ("normal", "tumor")),)
THREE = (*ONE, Task("grade", ("a", "b", "c")), Task("signs", ("x", "y"), "multi"))
OPTIONS = ScanOptions(6, ComputeSection(device="cpu", chunk_size=5))
SLIDE = textured_slide("s", label=1, seed=1)


def network(**settings) -> IpsNet:
    torch.manual_seed(3)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    net = IpsNet(encoder, NetSettings(heads=2, key_width=8, **settings)).eval()
    with torch.no_grad():
        net.head.weight.mul_(4)  # an untrained head gives 0.5 to everything
    return net


def predicted(tmp_path, **settings):
    """Scores as they are read back, and the network."""
    net = network(**settings)
    write_scores(tmp_path, predict_slide(net, SLIDE, OPTIONS, fingerprint="f"))
    return read_scores(tmp_path, "s"), net


@pytest.mark.parametrize("pooling", list(POOLINGS))
@pytest.mark.parametrize("tasks", [ONE, THREE], ids=["one task", "three tasks"])
@pytest.mark.parametrize("position", ["none", "sinusoidal"])
def test_the_probability_is_that_of_the_stored_tiles(tmp_path, pooling, tasks, position):
    scores, net = predicted(tmp_path, tasks=tasks, pooling=pooling, position=position)
    assert scores.kept_embeddings.shape == (6, net.encoder.width)
    found = recompute(scores, net)
    for stored, again in zip(scores.probabilities, found.probabilities, strict=True):
        np.testing.assert_allclose(stored, again, atol=1e-6)
        assert not np.allclose(stored, 1 / len(stored), atol=1e-3)  # an untrained head could hide a difference
    assert found.off < 1e-6
    assert found.logits_off < 1e-4
    assert found.kept_are_best


def test_probabilities_of_a_diverged_model_are_never_stored():
    net = network()
    with torch.no_grad():
        net.head.weight[0, 0] = torch.nan  # the attention is sound
    with pytest.raises(ScoresError, match=r"slide s: the model's probabilities are not finite; .*learning_rate"):
        predict_slide(net, SLIDE, OPTIONS)


def test_changes_are_found(tmp_path):
    scores, net = predicted(tmp_path)
    turned = replace(scores, kept_embeddings=scores.kept_embeddings[:, ::-1].copy())
    assert recompute(turned, net).off > 1e-4
    assert recompute(turned, net).logits_off > 1e-3
    others = replace(scores, kept=scores.kept[::-1].copy())
    assert not recompute(others, net).kept_are_best
    torch.nn.init.normal_(net.head.weight)
    assert recompute(scores, net).off > 1e-4


def test_embeddings_of_another_width_are_refused(tmp_path):
    scores, net = predicted(tmp_path)
    with pytest.raises(ScoresError, match="predict` again"):
        recompute(replace(scores, kept_embeddings=scores.kept_embeddings[:, :3]), net)
