"""Building encoders: torchvision ResNets, whole or truncated, and timm models by name or preset."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from wsi_ips.errors import CheckpointError, RecipeError
from wsi_ips.model.checkpoint_card import EncoderSpec
from wsi_ips.model.encoder import Encoder, StoredTrunk
from wsi_ips.model.encoders import ENCODERS, RESNET, TIMM, find_preset
from wsi_ips.model.published import access_explained, hub_config, is_on_hub, read_weights, timm_arguments

GROUPS = 32
"""Groups of group norm, fewer where the channels do not divide by it."""
_GLOBAL_POOL = {"model": {}, "cls": {"global_pool": "token"}, "cls+mean": {"global_pool": ""}}


def encoder_spec(name: str, *, norm: Literal["auto", "batch", "group"], has_weights: bool) -> EncoderSpec:
    """Check the name of an encoder and resolve ``norm: auto``.

    Raises
    ------
    RecipeError
        Unknown encoder, or group norm for given weights.
    """
    ENCODERS[name]  # raises where there is none
    if norm == "group" and has_weights:
        raise RecipeError(
            f"key `model.norm`: `group` fits an encoder trained from scratch, not `{name}` with given "
            "weights; use `auto`"
        )
    group = norm == "group" or (norm == "auto" and not has_weights)
    return EncoderSpec(name, "group" if group else "batch", frozen_statistics=has_weights)


def build_encoder(spec: EncoderSpec, *, pretrained: bool = False, weights: Path | None = None) -> Encoder:
    """Build an encoder.

    Parameters
    ----------
    spec
        Architecture and normalisation. The ``spec`` of the built encoder also holds the configuration from its page.
    pretrained
        Load the published weights; needs the network or a filled cache.
    weights
        Load weights from a local file instead: ``.safetensors``, or ``.bin``, ``.pth``, ``.pt`` with tensors only. For
        a model of the hub, a ``config.json`` next to the file makes the network unnecessary.

    Raises
    ------
    CheckpointError
        The weights cannot be loaded or do not fit.
    RecipeError
        There is no such encoder.
    """
    if spec.features:
        return Encoder(StoredTrunk(), spec=spec, width=spec.features)
    build = ENCODERS[spec.name].load()
    encoder: Encoder = build(spec, pretrained=pretrained and weights is None, weights=weights)
    if weights is not None:
        tensors = read_weights(weights, wanted=list(encoder.trunk.state_dict()))
        try:
            encoder.trunk.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"encoder weights {weights}: do not fit {spec.name}: {error}") from error
    return encoder


def build_resnet(spec: EncoderSpec, *, pretrained: bool, weights: Path | None) -> Encoder:  # noqa: ARG001
    """Build a ResNet of torchvision, whole or truncated; see :func:`build_encoder`."""
    from torchvision import models

    match = RESNET.fullmatch(_model_name(spec.name))
    assert match is not None
    norm_layer: Any = partial(nn.GroupNorm, GROUPS) if spec.norm == "group" else nn.BatchNorm2d
    try:
        # Residual branches that start at zero were measured to learn from the first steps on (DECISIONS.md).
        full = models.get_model(
            match["name"],
            weights="DEFAULT" if pretrained else None,
            norm_layer=norm_layer,
            zero_init_residual=not pretrained,
        )
    except OSError as error:
        raise access_explained(spec.name, error) from error
    stages = [full.layer1, full.layer2, full.layer3, full.layer4][: int(match["stages"] or 4)]
    trunk = nn.Sequential(full.conv1, full.bn1, full.relu, full.maxpool, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    last = stages[-1][-1]
    width = (getattr(last, "conv3", None) or last.conv2).out_channels
    return Encoder(trunk, spec=spec, width=width)


def build_timm(spec: EncoderSpec, *, pretrained: bool, weights: Path | None) -> Encoder:
    """Build a model of timm; see :func:`build_encoder`."""
    import timm
    from timm.data.config import resolve_data_config

    preset, name = find_preset(spec.name), _model_name(spec.name).removeprefix(TIMM)
    pooling = preset.pooling if preset else "model"
    spec = _with_hub_config(spec, name, weights)
    source = name if pretrained or not spec.architecture else spec.architecture
    arguments = {**timm_arguments(spec.arguments), **_GLOBAL_POOL[pooling]}
    try:
        trunk: Any = timm.create_model(source, pretrained=pretrained, num_classes=0, **arguments)
    except OSError as error:
        raise access_explained(spec.name, error) from error
    except (RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(f"key `model.encoder`: timm cannot build `{name}`: {error}") from error
    if spec.norm == "group":
        replace_batch_norm(trunk)
    data = resolve_data_config({}, model=trunk)
    return Encoder(
        trunk,
        spec=spec,
        width=int(trunk.num_features) * (2 if pooling == "cls+mean" else 1),
        mean=spec.mean or data["mean"],
        std=spec.std or data["std"],
        pooling=pooling,
    )


def replace_batch_norm(module: nn.Module) -> None:
    """Replace all batch norm within a module by group norm and keep scale and shift.

    Batch statistics would be those of the kept tiles only, and the scan would use another network than the gradient.
    """
    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm2d):
            norm = nn.GroupNorm(math.gcd(GROUPS, part.num_features), part.num_features, part.eps)
            norm.load_state_dict({"weight": part.weight, "bias": part.bias})
            within = [getattr(part, step) for step in ("drop", "act") if hasattr(part, step)]  # timm's own has these
            setattr(module, name, nn.Sequential(norm, *within) if within else norm)
        else:
            replace_batch_norm(part)


def _model_name(name: str) -> str:
    preset = find_preset(name)
    return name if preset is None else preset.model


def _with_hub_config(spec: EncoderSpec, name: str, weights: Path | None) -> EncoderSpec:
    """Add the configuration from the model's page; models that timm itself describes need none."""
    if spec.architecture:
        return spec
    preset = find_preset(spec.name)
    extra = dict(preset.arguments) if preset else {}
    if not is_on_hub(name):
        return replace(spec, arguments=extra)
    try:
        config = hub_config(name, beside=weights)
    except OSError as error:
        raise access_explained(spec.name, error) from error
    arguments = {**config.arguments, **extra}
    return replace(spec, architecture=config.architecture, arguments=arguments, mean=config.mean, std=config.std)
