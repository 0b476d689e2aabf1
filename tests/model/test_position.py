"""Places of tiles: physical, the same in scan and learner, and of consequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.cohort import PATCH_PX, textured_slide
from wsi_ips.config import ComputeSection
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import UNIT_UM, IpsNet, SinusoidalPosition
from wsi_ips.scanning import ScanOptions, Winners, plain_patches, scan_slides, slide_logits

COMPUTE = ComputeSection(device="cpu", readers=2, chunk_size=7)


def placed_net() -> IpsNet:
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    return IpsNet(encoder, NetSettings(heads=2, key_width=8, dropout=0.0, position="sinusoidal")).eval()


def test_literal_values():
    vectors = SinusoidalPosition(8)(torch.tensor([[0.0, 0.0], [UNIT_UM, 200 * UNIT_UM]]))
    assert vectors[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]  # sine x, cosine x, sine y, cosine y
    frequency = np.array([1, 0.01])
    expected = [*np.sin(frequency), *np.cos(frequency), *np.sin(200 * frequency), *np.cos(200 * frequency)]
    np.testing.assert_allclose(vectors[1], expected, atol=1e-4)


def test_the_width_must_fit():
    with pytest.raises(ValueError, match="multiple of 4, not 10"):
        SinusoidalPosition(10)


def test_centres_are_physical():
    index = textured_slide("s", label=0, seed=0).index
    assert index.centres_um[0].tolist() == [PATCH_PX * 0.25, PATCH_PX * 0.25]
    assert index.centres_um[8].tolist() == [PATCH_PX * 0.75, PATCH_PX * 0.75]  # second row, second column of seven


def test_scan_and_learner_see_the_same_places():
    net, prepare = placed_net(), plain_patches(torch.device("cpu"))
    requests = [textured_slide(f"s{i}", label=i, seed=i).at_slot(i) for i in range(2)]
    kept = scan_slides(net, requests, prepare, ScanOptions(5, COMPUTE))
    winners = Winners.of(net, requests, kept)
    with torch.no_grad():
        embeddings, _ = winners.padded(net.encoder(winners.patches(0, len(winners), prepare)))
        again = net.pooling.logits(embeddings)  # (B, K, T, H)
    for slot, selection in enumerate(kept):
        seen = selection.logits[np.searchsorted(selection.scanned, selection.tiles)]
        np.testing.assert_allclose(again[slot], seen, atol=1e-4)


def test_the_same_pixels_elsewhere_give_another_result():
    net, prepare = placed_net(), plain_patches(torch.device("cpu"))
    request = textured_slide("s", label=1, seed=1)
    kept = scan_slides(net, [request], prepare, ScanOptions(5, COMPUTE))
    here = slide_logits(net, [request], kept, prepare)
    moved = [type(kept[0])(**(vars(kept[0]) | {"tiles": kept[0].tiles[::-1]}))]
    assert not torch.allclose(here, slide_logits(net, [request], moved, prepare))
    net.position = None
    plain = slide_logits(net, [request], kept, prepare)
    assert torch.allclose(plain, slide_logits(net, [request], moved, prepare))
