"""Building encoders: torchvision ResNets, whole or truncated, and timm models by name or preset.

A pickle is loaded only if it contains only tensors, and no code of a repository is ever run.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wsi_ips.errors import CheckpointError, RecipeError
from wsi_ips.model.checkpoint_card import EncoderSpec
from wsi_ips.model.encoder import Encoder, StoredTrunk
from wsi_ips.model.encoders import ENCODERS, RESNET, TIMM, find_preset
from wsi_ips.provenance import parse_object

GROUPS = 32  # groups of group norm, fewer where the channels do not divide by it
_OUTSIDE_TIMM = ("hf-hub", "hf_hub", "local-dir")  # prefixes of models that bring their own configuration
_WRAPPERS = ("state_dict", "model", "teacher")  # keys under which weights files hold the state dict
# Parts of torchvision's ResNets and their positions in our trunk
_RESNET_PLACES = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
_GLOBAL_POOL = {"model": {}, "cls": {"global_pool": "token"}, "cls+mean": {"global_pool": ""}}


def encoder_spec(name: str, *, norm: Literal["auto", "batch", "group"], has_weights: bool) -> EncoderSpec:
    """Check the name of an encoder and resolve `norm: auto`; group norm is refused for given weights.

    Batch norm that learns follows the published code in all: no :class:`~wsi_ips.model.encoder.Standardise` either.
    """
    ENCODERS[name]  # raises where there is none
    if norm == "group" and has_weights:
        raise RecipeError(
            f"key `model.norm`: `group` fits an encoder trained from scratch, not `{name}` with given "
            "weights; use `auto`"
        )
    group = norm == "group" or (norm == "auto" and not has_weights)
    is_live = norm == "batch"
    return EncoderSpec(
        name, "group" if group else "batch", frozen_statistics=has_weights and not is_live, standardised=not is_live
    )


def build_encoder(spec: EncoderSpec, *, pretrained: bool = False, weights: Path | None = None) -> Encoder:
    """Build an encoder, whose ``spec`` then also contains the configuration from the model's page.

    ``pretrained`` loads the published weights, from the network or a filled cache. ``weights`` loads a local file
    instead: ``.safetensors``, or ``.bin``, ``.pth``, ``.pt`` with tensors only. For a model of the hub, a
    ``config.json`` next to that file makes the network unnecessary.
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
    """Build a ResNet of torchvision, whole or truncated."""
    from torchvision import models

    match = RESNET.fullmatch(_model_name(spec.name))
    assert match is not None
    norm_layer: Any = partial(nn.GroupNorm, GROUPS) if spec.norm == "group" else nn.BatchNorm2d
    try:
        # Residual branches that start at zero were measured to learn from the first steps on (DECISIONS.md); the
        # published code starts them as torchvision does.
        full = models.get_model(
            match["name"],
            weights="DEFAULT" if pretrained else None,
            norm_layer=norm_layer,
            zero_init_residual=not pretrained and spec.standardised,
        )
    except OSError as error:
        raise access_explained(spec.name, error) from error
    stages = [full.layer1, full.layer2, full.layer3, full.layer4][: int(match["stages"] or 4)]
    trunk = nn.Sequential(full.conv1, full.bn1, full.relu, full.maxpool, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    last = stages[-1][-1]
    width = (getattr(last, "conv3", None) or last.conv2).out_channels
    return Encoder(trunk, spec=spec, width=width)


def build_timm(spec: EncoderSpec, *, pretrained: bool, weights: Path | None) -> Encoder:
    """Build a model of timm."""
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
    """Add the configuration from next to the weights, the cache or the network; models of timm itself need none."""
    if spec.architecture:
        return spec
    preset = find_preset(spec.name)
    extra = dict(preset.arguments) if preset else {}
    source, _, place = name.partition(":")
    if source not in _OUTSIDE_TIMM:
        return replace(spec, arguments=extra)
    try:
        from timm.models import load_model_config_from_hf

        if weights is not None and (weights.parent / "config.json").is_file():
            data, architecture, arguments = _stored_config(weights.parent)
        elif source == "local-dir":
            data, architecture, arguments = _stored_config(Path(place))
        else:
            data, architecture, arguments = load_model_config_from_hf(place)
        mean, std = tuple(data.get("mean") or ()), tuple(data.get("std") or ())
        return replace(spec, architecture=architecture, arguments={**(arguments or {}), **extra}, mean=mean, std=std)
    except OSError as error:
        raise access_explained(spec.name, error) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"key `model.encoder`: {name}: its config.json is not that of a timm model ({error!r}); wsi-ips builds "
            "timm models only"
        ) from error


def _stored_config(folder: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Read preprocessing, architecture and arguments from a ``config.json``."""
    stored = parse_object((folder / "config.json").read_bytes())
    return stored.get("pretrained_cfg", stored), stored["architecture"], stored.get("model_args", {})


def timm_arguments(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Convert stored arguments for timm: layers stored by name become classes."""
    from timm.layers.mlp import GluMlp, Mlp, SwiGLU, SwiGLUPacked

    arguments = dict(stored)
    layer = arguments.get("mlp_layer")
    if layer is not None:
        known = {"GluMlp": GluMlp, "Mlp": Mlp, "SwiGLU": SwiGLU, "SwiGLUPacked": SwiGLUPacked}
        if layer not in known:
            raise RecipeError(f"key `model.encoder`: layer `{layer}` is unknown; known are {', '.join(known)}")
        arguments["mlp_layer"] = known[layer]
    arguments.pop("num_classes", None)
    return arguments


def read_weights(path: Path, *, wanted: Collection[str]) -> dict[str, Tensor]:
    """Read a weights file under the names of a trunk (`wanted`), without the tensors of a classifier."""
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Any] = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"encoder weights {path}: no such file; correct `model.weights`") from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"encoder weights {path}: cannot be read: {error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"encoder weights {path}: holds more than tensors, which could run code; save its state dict as "
            ".safetensors"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(tensors, dict) and isinstance(tensors.get(wrapper), dict):
            tensors = tensors[wrapper]
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"encoder weights {path}: no state dict; save `model.state_dict()`")
    named = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}  # of nn.DataParallel
    if "0.weight" in wanted and "conv1.weight" in named:
        named = {_resnet_place(name): tensor for name, tensor in named.items()}
        named = {name: tensor for name, tensor in named.items() if name in wanted}
    return {
        name: t for name, t in named.items() if name in wanted or not name.startswith(("fc.", "head.", "classifier."))
    }


def _resnet_place(name: str) -> str:
    first, dot, rest = name.partition(".")
    return f"{_RESNET_PLACES.get(first, first)}{dot}{rest}"


def access_explained(name: str, error: OSError) -> CheckpointError:
    """Build the error for a model that cannot be fetched: how to get access, or how to do without."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    preset = find_preset(name)
    repository = (preset.model if preset else name).rpartition(":")[2]
    status = getattr(getattr(error, "response", None), "status_code", None)
    refused = isinstance(error, GatedRepoError) or (isinstance(error, HfHubHTTPError) and status in (401, 403))
    if refused or (isinstance(error, RepositoryNotFoundError) and preset is not None):
        return CheckpointError(
            f"encoder {name}: its owners must grant access; ask for it at https://huggingface.co/{repository}, "
            "make a token at https://huggingface.co/settings/tokens and set it as HF_TOKEN (or run `hf auth login`), "
            "or give a file you have in `model.weights`"
        )
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"encoder {name}: there is no repository {repository}, or it is private; correct `model.encoder`, or set "
            "HF_TOKEN if you have access"
        )
    return CheckpointError(
        f"encoder {name}: cannot be fetched ({error}); give a local file in `model.weights` (for a model of the hub "
        "with its config.json beside it), or set `model.pretrained: false`"
    )
