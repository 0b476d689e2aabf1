"""The projector: started from data, every tile by itself, the same in the fast scan and in the learner."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wsi_ips.errors import CheckpointError
from wsi_ips.model.checkpoint_card import EncoderSpec
from wsi_ips.model.encoder import Projector
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.scan_encoders import auto, can_fuse


def test_a_start_makes_channels_comparable_and_tiles_stay_independent():
    torch.manual_seed(0)
    projector, features = Projector(40, 6), torch.randn(200, 40) * 5 + 3
    projector.start(features)
    mapped = projector.standardise(projector.linear(torch.nn.functional.layer_norm(features, (40,))))
    torch.testing.assert_close(mapped.mean(0), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(mapped.std(0), torch.ones(6), rtol=1e-4, atol=0)
    torch.testing.assert_close(projector(features[:3]), projector(features)[:3])
    torch.testing.assert_close(projector(features[:3] * 7), projector(features[:3]), rtol=1e-4, atol=1e-5)  # layer norm


@pytest.mark.parametrize("has_weights", [True, False])
def test_an_encoder_with_a_projector_is_the_same_in_the_scan(has_weights):
    torch.manual_seed(1)
    spec = replace(encoder_spec("resnet18-1", norm="auto", has_weights=has_weights), projector=12)
    encoder, patches = build_encoder(spec).eval(), torch.rand(5, 3, 32, 32)
    encoder.start(patches)
    assert (encoder.width, encoder.trunk_width) == (12, 64)
    assert can_fuse(encoder) == has_weights
    with torch.inference_mode():
        expected = encoder(patches)
        torch.testing.assert_close(auto(encoder)(patches), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(encoder(encoder.embed_raw(patches)), expected, rtol=0, atol=0)  # from features
    assert expected.shape == (5, 12)


def test_without_its_trunk_an_encoder_takes_features_and_refuses_pixels():
    encoder = build_encoder(EncoderSpec("imported:uni", "batch", True, projector=4, features=10))
    assert encoder(torch.rand(3, 10)).shape == (3, 4)
    with pytest.raises(CheckpointError, match="import the features of this slide"):
        encoder(torch.rand(3, 3, 16, 16))
