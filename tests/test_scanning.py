"""A scan keeps the tiles that the network's rule chooses."""

from __future__ import annotations

import pytest
import torch

from tests.cohort import textured_slide
from wsi_ips.config import ComputeSection
from wsi_ips.model import IpsNet, build_encoder, encoder_spec, selection_rule
from wsi_ips.model.rules import paper
from wsi_ips.scanning import plain_patches, scan_slides


def scanned(chunk_size: int, **net_arguments: object):
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    net = IpsNet(encoder, classes=2, heads=8, key_width=8, dropout=0.0, **net_arguments)
    compute = ComputeSection(device="cpu", chunk_size=chunk_size)
    requests = [textured_slide(f"s{i}", label=i, seed=i).at_slot(i) for i in range(2)]
    return scan_slides(net, requests, memory_size=4, compute=compute, prepare=plain_patches(torch.device("cpu")))


@pytest.mark.parametrize("chunk_size", [7, 100])
def test_selection_paper_does_not_depend_on_the_chunk_size_of_the_machine(chunk_size):
    for found in scanned(chunk_size, rule=selection_rule("paper", iteration_size=3)):
        assert len(found.scanned) == len(found.logits) == 28
        assert found.tiles.tolist() == found.scanned[paper(found.logits, 4, iteration_size=3)].tolist()


def test_pooling_by_the_mean_keeps_an_even_sample():
    for found in scanned(9, pooling="mean"):
        assert found.tiles.tolist() == [3, 10, 17, 24]
