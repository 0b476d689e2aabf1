"""The fused encoder computes the embeddings of the encoder it was made of, as it is at that moment."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wsi_ips.model.encoder import Encoder
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.scan_encoders import FusedResNet, auto, can_fuse


def encoder_of(name: str, norm: str = "batch") -> Encoder:
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec(name, norm=norm, has_weights=norm == "batch")).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return encoder


@pytest.mark.parametrize("name", ["resnet18", "resnet18-1", "resnet34-2", "resnet50-2"])
@pytest.mark.parametrize("shape", [(5, 3, 64, 64), (1, 3, 50, 37)])
@torch.inference_mode()
def test_embeddings_are_those_of_the_encoder(name, shape):
    encoder = encoder_of(name)
    assert can_fuse(encoder)
    fused = FusedResNet(encoder)
    patches = torch.rand(shape)
    before = patches.clone()
    expected = encoder(patches)
    tolerance = 1e-5 * expected.abs().max().item()
    for given in (patches, patches.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(fused(given), expected, rtol=0, atol=tolerance)
    assert torch.equal(patches, before)


@torch.inference_mode()
def test_a_patch_is_embedded_alike_in_any_company():
    fused, patches = auto(encoder_of("resnet18-2")), torch.rand(7, 3, 64, 64)
    torch.testing.assert_close(fused(patches)[2:4], fused(patches[2:4]), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_what_cannot_be_fused_is_run_as_it_is():
    free = build_encoder(encoder_spec("resnet18-1", norm="batch", has_weights=False)).train()
    timm = build_encoder(encoder_spec("timm:resnet10t", norm="auto", has_weights=False)).eval()
    assert not any(can_fuse(e) for e in (free, timm, encoder_of("resnet18-1").double()))
    group = encoder_of("resnet18-1", "group")
    assert not can_fuse(group)
    patches = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(auto(group)(patches), group(patches))


def test_it_is_made_of_the_weights_of_the_moment():
    encoder, patches = encoder_of("resnet18-1"), torch.rand(2, 3, 32, 32)
    old = auto(encoder)(patches)
    with torch.no_grad():
        encoder.trunk[0].weight.mul_(2)
    new = auto(encoder)(patches)
    assert (new - old).abs().max() > 1e-3
    torch.testing.assert_close(new, encoder(patches).detach(), rtol=1e-4, atol=1e-4)
