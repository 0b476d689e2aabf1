"""Leaving each kept tile out, in closed form, against leaving it out; and slides that are a sum of their tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsi_ips.labels import Task
from wsi_ips.model import IpsNet, build_encoder, encoder_spec
from wsi_ips.model.pooling import means_without_each
from wsi_ips.model.tasks import positive_margin

TASKS = (Task("label", ("a", "b", "c")), Task("more", ("d", "e"), "multi"))
WAYS = [("attention", False), ("abmil", False), ("mean", False), ("max", False)]
WAYS += [("attention", True), ("abmil", True), ("mean", True)]


def net_of(pooling: str, evidence: bool) -> IpsNet:
    torch.manual_seed(1)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    return IpsNet(encoder, tasks=TASKS, heads=3, key_width=5, pooling=pooling, evidence=evidence).eval()


def whole(net: IpsNet, embeddings: Tensor) -> Tensor:
    """Class logits of one slide, shape (C,)."""
    return net(embeddings[None], torch.ones(1, len(embeddings), dtype=torch.bool))[0]


def others(tensor: Tensor, number: int) -> Tensor:
    return torch.cat([tensor[:number], tensor[number + 1 :]])


@pytest.mark.parametrize("tiles", [2, 17])
@pytest.mark.parametrize(("pooling", "evidence"), WAYS)
@pytest.mark.parametrize("scale", [1.0, 30.0])  # flat attention, and nearly all of it on one tile
@torch.no_grad()
def test_closed_form_equals_leaving_each_tile_out(pooling, evidence, tiles, scale):
    net = net_of(pooling, evidence)
    embeddings = scale * torch.randn(tiles, net.encoder.width)
    brute = torch.stack([whole(net, others(embeddings, k)) for k in range(tiles)])
    closed = net.without_each(embeddings)
    assert closed.dtype == embeddings.dtype
    torch.testing.assert_close(closed, brute, rtol=1e-5, atol=1e-5)
    if pooling != "max":  # there most tiles make no difference
        assert (closed - whole(net, embeddings)).abs().max() > 1e-3


def test_a_tile_with_all_the_attention_leaves_the_mean_of_the_others():
    logits, values = torch.tensor([100.0, 0.0, 0.0]), torch.tensor([[7.0], [1.0], [2.0]])
    torch.testing.assert_close(means_without_each(logits, values), torch.tensor([[1.5], [7.0], [7.0]]))


@pytest.mark.parametrize("pooling", ["attention", "abmil", "mean"])
@torch.no_grad()
def test_evidence_of_the_tiles_adds_up_to_the_slide(pooling):
    net = net_of(pooling, evidence=True)
    embeddings, mask = torch.randn(2, 6, net.encoder.width), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 2:] = False
    shares = net.evidences(embeddings, mask)
    torch.testing.assert_close(shares.sum(1), net(embeddings, mask))
    assert not shares[1, 2:].any()
    torch.testing.assert_close(whole(net, embeddings[1, :2]), net(embeddings, mask)[1])  # padding changes nothing


@torch.no_grad()
def test_a_slide_of_one_tile_is_what_that_tile_says_alone():
    net = net_of("attention", evidence=True)
    embedding = torch.randn(1, net.encoder.width)
    torch.testing.assert_close(whole(net, embedding), net.classify(net.pooling.alone(embedding))[0])


def test_evidence_is_no_pooling_by_one_tile():
    with pytest.raises(ValueError, match="no `evidence` with pooling `max`"):
        net_of("max", evidence=True)


def test_margin_of_two_classes_is_the_log_odds():
    logits = torch.tensor([0.5, 2.0])
    chance = logits.softmax(0)
    margin = positive_margin(logits, Task("label", ("a", "b")))
    torch.testing.assert_close(margin, (chance[1] / chance[0]).log())
    torch.testing.assert_close(
        positive_margin(torch.tensor([1.0, 3.0, 5.0]), Task("label", ("a", "b", "c"))), torch.tensor(3.0)
    )
    torch.testing.assert_close(positive_margin(logits, Task("label", ("a", "b"), "multi")), torch.tensor(2.0))
