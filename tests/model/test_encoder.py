"""Encoders: names, widths, normalisation, refusal of what does not fit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wsi_ips.errors import CheckpointError, RecipeError
from wsi_ips.model.encoder import build_encoder, encoder_spec


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet18", 512), ("resnet18-2", 128), ("resnet50-3", 1024), ("timm:resnet10t", 512)],
)
def test_width_is_what_comes_out(name, width):
    encoder = build_encoder(encoder_spec(name, norm="auto", has_weights=False)).eval()
    assert encoder.width == width
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, width)


def test_from_scratch_has_no_batch_statistics():
    spec = encoder_spec("resnet18-2", norm="auto", has_weights=False)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in build_encoder(spec).modules())


def test_scan_and_gradient_pass_see_the_same_network_with_given_weights():
    encoder = build_encoder(encoder_spec("resnet18-2", norm="auto", has_weights=True))
    assert any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    patches = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(encoder.train()(patches), encoder.eval()(patches))


def test_a_patch_is_embedded_alike_in_any_company():
    encoder = build_encoder(encoder_spec("resnet18-2", norm="auto", has_weights=False)).train()
    patches = torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(encoder(patches)[1], encoder(patches[1:2])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet19", "resnet18-5", "uni"])
def test_unknown_names_are_refused_with_the_known_ones(name):
    with pytest.raises(RecipeError, match=r"model.encoder.*resnet18"):
        encoder_spec(name, norm="auto", has_weights=False)


def test_unknown_timm_name_is_a_recipe_error():
    with pytest.raises(RecipeError, match="no_such_model"):
        build_encoder(encoder_spec("timm:no_such_model", norm="auto", has_weights=False))


def test_weights_from_a_local_file(tmp_path):
    spec = encoder_spec("resnet18-2", norm="auto", has_weights=True)
    source = build_encoder(spec)
    save_file({k: v.contiguous() for k, v in source.trunk.state_dict().items()}, tmp_path / "w.safetensors")
    patches = torch.rand(2, 3, 32, 32)
    loaded = build_encoder(spec, weights=tmp_path / "w.safetensors")
    torch.testing.assert_close(loaded.eval()(patches), source.eval()(patches))


def test_weights_that_do_not_fit_name_the_file(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        build_encoder(encoder_spec("resnet18-2", norm="auto", has_weights=True), weights=tmp_path / "w.safetensors")
