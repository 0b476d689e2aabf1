"""The weights of a self-supervised encoder load through `model.weights`, whatever its norm."""

from __future__ import annotations

import pytest
import torch

from wsi_ips.config import ModelSection
from wsi_ips.errors import CheckpointError
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.encoder_file import FINGERPRINT, encoder_header, write_encoder
from wsi_ips.training.model_building import frozen_encoder, plan_encoder


@pytest.mark.parametrize(("norm", "frozen"), [("group", False), ("batch", True)])
def test_an_encoder_from_scratch_comes_back_with_its_norm(tmp_path, norm, frozen):
    torch.manual_seed(3)
    encoder = build_encoder(encoder_spec("resnet18-1", norm=norm, has_weights=False))
    encoder.train()(torch.rand(4, 3, 32, 32))  # batch norm has statistics to keep
    write_encoder(tmp_path / "encoder.safetensors", encoder, fingerprint="f")
    section = ModelSection(encoder="resnet18-1", weights=tmp_path / "encoder.safetensors")
    spec = plan_encoder(section).spec
    assert (spec.norm, spec.frozen_statistics) == (norm, frozen)
    patches = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = frozen_encoder(section, seed=9, patch_px=32).embed_raw(patches)
        torch.testing.assert_close(found, encoder.eval().embed_raw(patches), rtol=0, atol=0)


def test_another_encoder_is_refused_by_name(tmp_path):
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False)), fingerprint="f")
    with pytest.raises(CheckpointError, match=r"those of resnet18-1, and the recipe has resnet18-2; set"):
        plan_encoder(ModelSection(encoder="resnet18-2", weights=path))


def test_a_file_of_another_tool_has_no_fingerprint(tmp_path):
    assert FINGERPRINT not in encoder_header(tmp_path / "none.safetensors")
    (tmp_path / "weights.pth").write_bytes(b"pickle")
    assert encoder_header(tmp_path / "weights.pth") == {}
