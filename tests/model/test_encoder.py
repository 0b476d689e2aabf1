"""Encoders: names, widths, normalisation, refusal of what does not fit."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d
from torch import nn
from torchvision import models

from wsi_ips.errors import CheckpointError, RecipeError
from wsi_ips.model.checkpoint_card import EncoderSpec
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.encoder_families import build_encoder, encoder_spec, replace_batch_norm
from wsi_ips.model.encoders import ENCODERS, PRESETS, EncoderEntry


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet18", 512), ("resnet18-2", 128), ("resnet50-3", 1024), ("timm:resnet10t", 512)],
)
def test_width_is_what_comes_out(name, width):
    encoder = build_encoder(encoder_spec(name, norm="auto", has_weights=False)).eval()
    assert encoder.width == width
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, width)


@pytest.mark.parametrize("name", ["resnet18-2", "timm:resnet10t", "timm:test_efficientnet"])
def test_from_scratch_has_no_batch_statistics(name):
    encoder = build_encoder(encoder_spec(name, norm="auto", has_weights=False)).train()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in encoder.modules())
    encoder = encoder.eval()
    patches = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(encoder(patches)[:1], encoder(patches[:1]), rtol=1e-4, atol=1e-5)


def test_group_norm_in_the_place_of_batch_norm_keeps_scale_shift_and_activation():
    module = nn.Sequential(nn.Conv2d(3, 48, 1), BatchNormAct2d(48))
    nn.init.uniform_(module[1].weight)
    nn.init.uniform_(module[1].bias)
    weight, bias, patches = module[1].weight, module[1].bias, torch.rand(2, 3, 8, 8)
    replace_batch_norm(module)
    wanted = nn.functional.group_norm(module[0](patches), 16, weight, bias).relu()
    torch.testing.assert_close(module(patches), wanted)


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
    with pytest.raises(RecipeError, match=rf"no encoder `{name}`; .*(resnet18|preset:uni)"):
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


TINY_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32, "patch_size": 8}


def tiny_repository(folder: Path, **arguments: object) -> Path:
    """A folder like a repository of the hub: config.json and weights of a tiny vision transformer."""
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "model_args": TINY_VIT | arguments,
        "pretrained_cfg": {"mean": [0.7, 0.6, 0.7], "std": [0.2, 0.25, 0.2], "input_size": [3, 32, 32]},
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    spec = encoder_spec(f"timm:local-dir:{folder}", norm="auto", has_weights=False)
    tensors = build_encoder(spec).trunk.state_dict()
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    return folder


def test_size_mean_deviation_and_width_come_from_the_models_own_configuration(tmp_path):
    folder = tiny_repository(tmp_path / "tiny")
    encoder = build_encoder(encoder_spec(f"timm:local-dir:{folder}", norm="auto", has_weights=True), pretrained=True)
    assert encoder.width == 48
    assert encoder.mean.flatten().tolist() == pytest.approx([0.7, 0.6, 0.7])
    assert encoder.std.flatten().tolist() == pytest.approx([0.2, 0.25, 0.2])
    loaded, stored = encoder.trunk.state_dict(), load_file(folder / "model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
    encoder.check_patch(32)
    with pytest.raises(RecipeError, match=r"tiles\.patch_px.*32 px only, not 64"):
        encoder.check_patch(64)


def test_a_model_of_the_hub_is_built_again_without_its_repository(tmp_path):
    folder = tiny_repository(tmp_path / "tiny")
    encoder = build_encoder(encoder_spec(f"timm:local-dir:{folder}", norm="auto", has_weights=True)).eval()
    stored = json.loads(json.dumps(asdict(encoder.spec)))
    shutil.rmtree(folder)
    again = build_encoder(EncoderSpec(**stored)).eval()
    again.load_state_dict(encoder.state_dict())
    patches = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again(patches), encoder(patches))
    assert again.spec == encoder.spec


def test_patches_that_the_cut_into_tokens_does_not_divide_are_refused(tmp_path):
    folder = tiny_repository(tmp_path / "tiny", dynamic_img_size=True)
    encoder = build_encoder(encoder_spec(f"timm:local-dir:{folder}", norm="auto", has_weights=True)).eval()
    encoder.check_patch(64)
    assert encoder(torch.rand(1, 3, 64, 64)).shape == (1, 48)
    with pytest.raises(RecipeError, match="multiple of 8 px, not 61; set it to 64"):
        encoder.check_patch(61)


def test_any_patch_goes_through_a_convolutional_network():
    build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False)).check_patch(61)
    build_encoder(encoder_spec("timm:resnet10t", norm="auto", has_weights=False)).check_patch(61)


def test_a_preset_from_a_local_file_with_class_token_and_mean_of_the_patch_tokens(tmp_path, monkeypatch):
    folder = tiny_repository(tmp_path / "tiny", reg_tokens=4, mlp_ratio=4.0)
    tiny = replace(PRESETS["virchow2"], arguments={})
    monkeypatch.setitem(ENCODERS._entries, "preset:virchow2", replace(ENCODERS["preset:virchow2"], preset=tiny))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec = encoder_spec("preset:virchow2", norm="auto", has_weights=True)
    encoder = build_encoder(spec, weights=folder / "model.safetensors").eval()
    encoder.standardise = nn.Identity()
    patches = torch.rand(2, 3, 32, 32)
    tokens = encoder.trunk.forward_features((patches - encoder.mean) / encoder.std)  # (n, 1 + 4 + 16, 48)
    assert encoder.width == 96
    torch.testing.assert_close(encoder(patches), torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1))


def test_the_layers_that_configurations_leave_out_are_stored_by_name(tmp_path, monkeypatch):
    folder = tiny_repository(tmp_path / "tiny", mlp_layer="SwiGLUPacked", act_layer="silu")
    spec = encoder_spec("preset:h0-mini", norm="auto", has_weights=True)
    trunk = build_encoder(spec, weights=folder / "model.safetensors").trunk
    assert type(trunk.blocks[0].mlp).__name__ == "GluMlp"


def test_an_unknown_layer_in_a_checkpoint_is_refused():
    spec = EncoderSpec("timm:x", "batch", True, architecture="vit_tiny_patch16_224", arguments={"mlp_layer": "system"})
    with pytest.raises(RecipeError, match="layer `system` is unknown"):
        build_encoder(spec)


def test_an_unknown_preset_is_refused():
    with pytest.raises(RecipeError, match="no encoder `preset:no-such`"):
        encoder_spec("preset:no-such", norm="auto", has_weights=True)


def test_another_package_adds_an_encoder_by_an_entry(monkeypatch):
    mine = EncoderEntry("mine", f"{__name__}:build_mine", "one convolution")
    monkeypatch.setitem(ENCODERS._entries, "mine", mine)
    encoder = build_encoder(encoder_spec("mine", norm="auto", has_weights=False))
    assert encoder(torch.rand(2, 3, 8, 8)).shape == (2, 5)


def build_mine(spec: EncoderSpec, *, pretrained: bool, weights: Path | None) -> Encoder:
    trunk = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Encoder(trunk, spec=spec, width=5)


def test_presets_without_a_network_of_their_own_are_the_plain_name():
    encoder = build_encoder(encoder_spec("preset:resnet50", norm="auto", has_weights=False)).eval()
    assert encoder(torch.rand(1, 3, 64, 64)).shape == (1, PRESETS["resnet50"].width)


def refusal(kind: type, status: int) -> OSError:
    return kind("no", response=SimpleNamespace(status_code=status, headers={}, request=None))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "preset:uni",
            lambda: refusal(GatedRepoError, 403),
            r"huggingface\.co/MahmoodLab/uni.*HF_TOKEN.*model\.weights",
        ),
        (
            "preset:virchow",
            lambda: refusal(RepositoryNotFoundError, 401),
            r"huggingface\.co/paige-ai/Virchow.*HF_TOKEN",
        ),
        ("timm:hf-hub:a/b", lambda: refusal(RepositoryNotFoundError, 404), "no repository a/b"),
        ("timm:hf-hub:a/b", lambda: LocalEntryNotFoundError("offline"), r"config\.json beside it"),
    ],
)
def test_without_access_the_error_tells_how_to_get_it(monkeypatch, name, error, message):
    def refuse(*_: object, **__: object) -> None:
        raise error()

    monkeypatch.setattr("timm.models.load_model_config_from_hf", refuse)
    with pytest.raises(CheckpointError, match=message):
        build_encoder(encoder_spec(name, norm="auto", has_weights=True), pretrained=True)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_weights_of_a_whole_torchvision_resnet_fit_a_truncated_one(tmp_path, suffix):
    full = models.resnet18(weights=None)
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(full.state_dict(), path)
    else:
        torch.save({"state_dict": full.state_dict()}, path)
    loaded = build_encoder(encoder_spec("resnet18-2", norm="auto", has_weights=True), weights=path).trunk
    assert torch.equal(loaded[0].weight, full.conv1.weight)
    assert torch.equal(loaded[5][1].bn2.weight, full.layer2[1].bn2.weight)


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("harmed",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Harmful()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth: holds more than tensors"):
        build_encoder(encoder_spec("resnet18-2", norm="auto", has_weights=True), weights=tmp_path / "w.pth")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_that_are_no_weights_name_the_file(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"w\{suffix}"):
        build_encoder(encoder_spec("resnet18-2", norm="auto", has_weights=True), weights=path)
