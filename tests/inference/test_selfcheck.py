"""A slide's prediction follows from what is stored of its tiles, for every pooling; what was changed is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.cohort import PATCH_PX, textured_slide
from wsi_ips.config import ComputeSection
from wsi_ips.errors import ScoresError
from wsi_ips.inference import predict_slide, read_scores, recompute, recomputed_probability, write_scores
from wsi_ips.labels import Task
from wsi_ips.model import ModelCard, encoder_spec
from wsi_ips.model.checkpoint import build_net

ONE = (Task("label", ("normal", "tumor")),)
THREE = (*ONE, Task("grade", ("a", "b", "c")), Task("signs", ("x", "y"), "multi"))


def predicted(tmp_path, tasks=ONE, **changes):
    """Scores as they are read back, and the network."""
    torch.manual_seed(3)
    spec = encoder_spec("resnet18-1", norm="auto", has_weights=False)
    card = replace(ModelCard("m", tasks, spec, 2, 8, 0.1, 6, 0.5, PATCH_PX, "f", {}), **changes)
    net = build_net(card).eval()
    with torch.no_grad():
        net.head.weight.mul_(4)  # an untrained head says 0.5 of everything
    slide = textured_slide("s", label=1, seed=1)
    scores = predict_slide(
        net, card, slide, compute=ComputeSection(chunk_size=5), device=torch.device("cpu"), fingerprint="f"
    )
    write_scores(tmp_path, scores)
    return read_scores(tmp_path, "s"), net


@pytest.mark.parametrize("pooling", ["attention", "abmil", "mean", "max"])
@pytest.mark.parametrize("tasks", [ONE, THREE], ids=["one task", "three tasks"])
@pytest.mark.parametrize("position", ["none", "sinusoidal"])
def test_the_probability_is_that_of_the_stored_tiles(tmp_path, pooling, tasks, position):
    scores, net = predicted(tmp_path, tasks, pooling=pooling, position=position)
    assert scores.kept_embeddings.shape == (6, net.encoder.width)
    for stored, again in zip(scores.probabilities, recomputed_probability(scores, net), strict=True):
        np.testing.assert_allclose(stored, again, atol=1e-6)
        assert not np.allclose(stored, 1 / len(stored), atol=1e-3)  # nor does an untrained head hide a difference
    found = recompute(scores, net)
    assert found.off < 1e-6
    assert found.logits_off < 1e-4
    assert found.kept_are_best


def test_what_a_diverged_model_says_is_never_stored(tmp_path):
    spec = encoder_spec("resnet18-1", norm="auto", has_weights=False)
    card = ModelCard("m", ONE, spec, 2, 8, 0.1, 6, 0.5, PATCH_PX, "f", {})
    net = build_net(card).eval()
    with torch.no_grad():
        net.head.weight[0, 0] = torch.nan  # the attention is sound
    slide = textured_slide("s", label=1, seed=1)
    with pytest.raises(ScoresError, match=r"slide s: the model's probabilities are not finite; .*learning_rate"):
        predict_slide(net, card, slide, compute=ComputeSection(), device=torch.device("cpu"), fingerprint="f")


def test_what_was_changed_is_found(tmp_path):
    scores, net = predicted(tmp_path)
    turned = replace(scores, kept_embeddings=scores.kept_embeddings[:, ::-1].copy())
    assert recompute(turned, net).off > 1e-4
    assert recompute(turned, net).logits_off > 1e-3
    others = replace(scores, kept=scores.kept[::-1].copy())
    assert not recompute(others, net).kept_are_best
    _, other_net = predicted(tmp_path, pooling="max")
    assert recompute(scores, other_net).off > 1e-4


def test_a_table_without_embeddings_or_of_another_width_is_refused(tmp_path):
    scores, net = predicted(tmp_path)
    with pytest.raises(ScoresError, match="from before embeddings were stored"):
        recompute(replace(scores, kept_embeddings=None), net)
    with pytest.raises(ScoresError, match="predict` again"):
        recompute(replace(scores, kept_embeddings=scores.kept_embeddings[:, :3]), net)
    write_scores(tmp_path, replace(scores, kept_embeddings=None))
    assert read_scores(tmp_path, "s").kept_embeddings is None
