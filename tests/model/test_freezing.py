"""Freezing: what is frozen gets no gradient and does not notice that it is trained."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.model.test_encoder import TINY_VIT
from wsi_ips.errors import RecipeError
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint import ModelCard, load_checkpoint, save_checkpoint
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder import Encoder, EncoderSpec
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.freezing import add_lora, freeze, plain_state, stages_of
from wsi_ips.model.net import IpsNet

VIT = EncoderSpec("timm:vit_tiny_patch16_224", "batch", True, "vit_tiny_patch16_224", TINY_VIT)
NAMES = ["resnet18", "resnet50-3", "timm:resnet10t", "vit", "timm:convnext_atto", "timm:test_efficientnet"]


def encoder_of(name: str, **arguments: object) -> Encoder:
    if name == "vit":
        return build_encoder(replace(VIT, arguments=TINY_VIT | arguments))
    return build_encoder(encoder_spec(name, norm="auto", has_weights=False))


def learned(encoder: Encoder) -> set[str]:
    """Names of the trunk's parameters that get a gradient."""
    encoder.zero_grad()
    encoder.train()
    encoder(torch.rand(2, 3, 32, 32)).square().sum().backward()
    return {name for name, p in encoder.trunk.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_the_first_stages_and_all_before_them_get_no_gradient(name):
    encoder = encoder_of(name)
    before, stages = stages_of(encoder.trunk)
    assert len(stages) >= 2
    freeze(encoder, 1)
    frozen = {id(p) for part in (*before, stages[0]) for p in part.parameters()}
    frozen |= {id(p) for p in encoder.trunk.parameters(recurse=False)}
    names = {name for name, p in encoder.trunk.named_parameters() if id(p) in frozen}
    assert names
    assert names.isdisjoint(learned(encoder))
    assert {name for name, p in stages[1].named_parameters() if p.requires_grad}
    assert all(not part.training for part in (*before, stages[0]))
    assert stages[1].training


def test_position_and_tokens_of_a_transformer_freeze_with_its_first_block():
    encoder = encoder_of("vit")
    freeze(encoder, 1)
    got = learned(encoder)
    assert {"pos_embed", "cls_token"}.isdisjoint(got)
    assert {name.split(".")[0] for name in got} == {"blocks", "norm"}
    assert {name.split(".")[1] for name in got if name.startswith("blocks")} == {"1"}


@pytest.mark.parametrize("name", NAMES)
def test_all_and_none(name):
    encoder = encoder_of(name)
    freeze(encoder, "all")
    assert learned(encoder) == set()
    assert encoder.standardise.weight.grad is not None
    freeze(encoder, "none")
    assert learned(encoder) == {name for name, _ in encoder.trunk.named_parameters()}
    assert all(part.training for part in encoder.trunk.modules())


def test_dropout_and_batch_statistics_of_a_frozen_part_do_nothing_in_training():
    patches = torch.rand(4, 3, 32, 32)
    with_batch_norm = build_encoder(EncoderSpec("timm:resnet10t", "batch", frozen_statistics=False))
    assert any(isinstance(part, nn.BatchNorm2d) for part in with_batch_norm.modules())
    for encoder in (encoder_of("vit", proj_drop_rate=0.5, drop_path_rate=0.5), with_batch_norm):
        freeze(encoder, "all")
        before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        torch.testing.assert_close(encoder.train()(patches), encoder.eval()(patches))
        assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_more_stages_than_there_are_is_refused_with_their_number():
    with pytest.raises(RecipeError, match=r"model\.freeze.*resnet18-2 has 2 stages, not 3"):
        freeze(encoder_of("resnet18-2"), 3)


def test_positions_tokens_norms_and_biases_have_no_weight_decay():
    net = IpsNet(encoder_of("vit", reg_tokens=2), NetSettings(heads=2, key_width=8))
    decayed, free = net.parameter_groups(0.1)
    names = {id(p): name for name, p in net.named_parameters()}
    without = {names[id(p)] for p in free["params"]}
    assert free["weight_decay"] == 0
    assert {f"encoder.trunk.{n}" for n in ("pos_embed", "cls_token", "reg_token", "norm.weight")} <= without
    assert {"encoder.trunk.blocks.0.norm1.bias", "encoder.trunk.patch_embed.proj.bias", "pooling.queries"} <= without
    weights = {names[id(p)] for p in decayed["params"]}
    assert {"encoder.trunk.blocks.0.attn.qkv.weight", "encoder.trunk.patch_embed.proj.weight"} <= weights
    assert len(without) + len(weights) == len(names)


def test_frozen_parameters_are_not_given_to_the_optimiser():
    net = IpsNet(encoder_of("resnet18-2"), NetSettings(heads=2, key_width=8))
    freeze(net.encoder, "all")
    given = {id(p) for group in net.parameter_groups(0.1) for p in group["params"]}
    assert given.isdisjoint({id(p) for p in net.encoder.trunk.parameters()})


def test_a_transformer_with_layer_norm_embeds_a_patch_alike_in_any_company_also_in_training():
    encoder = encoder_of("vit").train()
    patches = torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(encoder(patches)[1], encoder(patches[1:2])[0], rtol=1e-4, atol=1e-5)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in encoder.modules())


def test_without_peft_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RecipeError, match=r"model\.lora_rank.*wsi-ips\[lora\]"):
        add_lora(encoder_of("vit"), 4)


def test_lora_needs_attention():
    with pytest.raises(RecipeError, match="has no attention"):
        add_lora(encoder_of("resnet18-2"), 4)


@pytest.mark.filterwarnings("ignore")
class TestLora:
    @pytest.fixture(autouse=True)
    def _peft(self):
        pytest.importorskip("peft", reason="peft is not installed (extra `lora`)")

    def test_only_the_added_matrices_learn(self):
        encoder = encoder_of("vit", proj_drop_rate=0.5)
        patches = torch.rand(2, 3, 32, 32)
        before = encoder.eval()(patches)
        add_lora(encoder, 4)
        torch.testing.assert_close(encoder.train()(patches), before)  # they start at zero, dropout is off
        got = learned(encoder)
        assert {".".join(name.split(".")[:4]) for name in got} == {
            f"blocks.{i}.attn.{part}" for i in (0, 1) for part in ("qkv", "proj")
        }
        assert all("lora_" in name for name in got)

    def test_a_checkpoint_holds_the_sum_and_needs_no_peft(self, tmp_path, monkeypatch):
        net = IpsNet(encoder_of("vit"), NetSettings(heads=2, key_width=8))
        names = set(net.state_dict())
        add_lora(net.encoder, 4)
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        assert set(plain_state(net)) == names
        card = ModelCard(
            model_id="m",
            tasks=(Task("label", ("a", "b")),),
            encoder=net.encoder.spec,
            heads=2,
            key_width=8,
            dropout=0.1,
            memory_size=4,
            patch_mpp=0.5,
            patch_px=32,
            fingerprint="f",
        )
        save_checkpoint(tmp_path, net, card)
        monkeypatch.setitem(sys.modules, "peft", None)
        loaded, _ = load_checkpoint(tmp_path)
        patches = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(loaded.encoder(patches), net.eval().encoder(patches), rtol=1e-4, atol=1e-5)
