"""Freeze an encoder: all of it, its first stages, or all but added low-rank matrices (LoRA).

A frozen part gets no gradient and stays in evaluation mode, so that its dropout and batch statistics are off too.
:class:`~wsi_ips.model.encoder.Standardise` always learns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsi_ips.errors import RecipeError
from wsi_ips.model.encoder import Encoder

Depth = Literal["none", "all"] | int
_LORA_TARGETS = r"blocks\.\d+\.attn\.(qkv|q_proj|k_proj|v_proj|proj)"
_STAGES = ("blocks", "stages", "layers")
_NUMBERED = ("layer1", "layer2", "layer3", "layer4")


def freeze(encoder: Encoder, depth: Depth) -> None:
    """Freeze all of an encoder, or its first stages or blocks with everything before them; in place."""
    trunk = encoder.trunk
    if depth == "none":
        encoder.frozen = ()
        trunk.requires_grad_(True)
        return
    if depth == "all":
        encoder.frozen = (trunk,)
        trunk.requires_grad_(False)
        return
    before, stages = stages_of(trunk)
    if depth > len(stages):
        raise RecipeError(
            f"key `model.freeze`: encoder {encoder.spec.name} has {len(stages)} stages, not {depth}; give none, all "
            f"or a number up to {len(stages)}"
        )
    encoder.frozen = (*before, *stages[:depth])
    for part in encoder.frozen:
        part.requires_grad_(False)
    for parameter in trunk.parameters(recurse=False):  # position embedding and tokens, added before the first block
        parameter.requires_grad_(False)


def stages_of(trunk: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the parts before the first stage of a trunk, and its stages or blocks in order; both may be empty."""
    children = dict(trunk.named_children())
    if isinstance(trunk, nn.Sequential):  # a ResNet of torchvision: stem of 4 parts, stages, pooling of 2
        return [*trunk[:4]], [*trunk[4:-2]]
    first = next((name for name in children if name in (*_STAGES, *_NUMBERED)), None)
    if first is None:
        return [], []
    before = [children[name] for name in list(children)[: list(children).index(first)]]
    if first in _STAGES:
        return before, list(children[first].children())
    return before, [children[name] for name in _NUMBERED if name in children]


def add_lora(encoder: Encoder, rank: int) -> None:
    """Freeze a vision transformer and add trainable low-rank matrices to the projections of its attention.

    Source: Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022; scaled by 2 as in the paper.
    """
    targets = [name for name, part in encoder.trunk.named_modules() if re.fullmatch(_LORA_TARGETS, name)]
    if not targets:
        raise RecipeError(
            f"key `model.lora_rank`: encoder {encoder.spec.name} has no attention to add to; take a vision "
            "transformer, or freeze stages with `model.freeze`"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RecipeError(
            "key `model.lora_rank`: needs the library peft; install it with pip install 'wsi-ips[lora]', or set "
            "the rank to 0"
        ) from error
    freeze(encoder, "all")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), encoder.trunk)
    for name, parameter in encoder.trunk.named_parameters():
        parameter.requires_grad_("lora_" in name)


def plain_state(net: nn.Module) -> dict[str, Tensor]:
    """Return the state of a network with its low-rank matrices merged into the weights they belong to.

    It fits the network without :func:`add_lora`, so that loading a checkpoint needs no ``peft``.
    """
    state = net.state_dict()
    for name, layer in _lora_layers(net):
        own = [key for key in state if key.startswith(f"{name}.")]
        merged = {key.removeprefix(f"{name}.base_layer."): state[key] for key in own if ".base_layer." in key}
        with torch.no_grad():
            merged["weight"] = merged["weight"] + sum(layer.get_delta_weight(adapter) for adapter in layer.lora_A)
        for key in own:
            del state[key]
        state.update({f"{name}.{key}": tensor for key, tensor in merged.items()})
    return state


def _lora_layers(net: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, part) for name, part in net.named_modules() if hasattr(part, "get_delta_weight"))
