"""Patch encoders: torchvision ResNets, whole or truncated, any timm model by name, and presets.

Shapes: n patches, C channels, h x w pixels, D width of the embedding, P prefix tokens (class and registers), L tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from wsi_ips.errors import CheckpointError, RecipeError
from wsi_ips.model.card import EncoderSpec
from wsi_ips.model.presets import PoolingOfTokens, find_preset
from wsi_ips.model.projection import Projector, Standardise
from wsi_ips.model.published import access_explained, hub_config, is_on_hub, read_weights, timm_arguments

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GROUPS = 32

TIMM = "timm:"
IMPORTED = "imported:"
"""Before the name of an encoder that another tool ran."""
_GLOBAL_POOL: Mapping[PoolingOfTokens, Mapping[str, Any]] = {
    "model": {},
    "cls": {"global_pool": "token"},
    "cls+mean": {"global_pool": ""},
}

_RESNET = re.compile(r"(?P<name>resnet(?:18|34|50|101))(?:-(?P<stages>[1-4]))?")


class StoredTrunk(nn.Module):
    """Stands in for a trunk where embeddings were computed beforehand: it has no weights, and takes no pixels."""

    def forward(self, patches: Tensor) -> Tensor:
        """Refuse pixels.

        Raises
        ------
        CheckpointError
            Always.
        """
        raise CheckpointError(
            f"{len(patches)} patches for a model that knows stored features only, and not the encoder that made them: "
            "import the features of this slide (`features.imported`)"
        )


class Encoder(nn.Module):
    """Patches to embeddings, with the input normalisation the weights expect.

    Instead of patches it takes what its trunk made of them earlier, stored features of shape (n, F).

    Attributes
    ----------
    trunk
        The architecture, its classifier taken off.
    standardise
        Scale and shift of its output; with ``spec.projector`` a :class:`Projector`.
    spec
        How it was built.
    width
        Width D of an embedding.
    trunk_width
        Width F of the trunk's output; D but for a projector.
    frozen
        Parts that stay in evaluation mode in training (:func:`wsi_ips.model.freezing.freeze`).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        *,
        spec: EncoderSpec,
        width: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        pooling: PoolingOfTokens = "model",
    ) -> None:
        super().__init__()
        self.trunk = trunk.to(memory_format=torch.channels_last)
        self.standardise = Projector(width, spec.projector) if spec.projector else Standardise(width)
        self.spec = spec
        self.width, self.trunk_width = spec.projector or width, width
        self.frozen: tuple[nn.Module, ...] = ()
        self._pooling = pooling
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches.

        Parameters
        ----------
        patches
            Float in 0-1, shape (n, 3, h, w), channels-last memory for speed; or features, shape (n, F).

        Returns
        -------
        torch.Tensor
            Shape (n, D).
        """
        out: Tensor = self.standardise(self.embed_raw(patches))  # (n, D)
        return out

    @torch.no_grad()
    def start(self, patches: Tensor) -> None:
        """Start :class:`Standardise` from some patches (or features) of the training slides."""
        self.standardise.start(self.embed_raw(patches))

    @torch.no_grad()
    def estimate_statistics(self, parts: Iterable[Tensor]) -> None:
        """Take mean and variance of all batch norm anew; frozen ones too, for they describe pixels, not weights.

        Each layer sees what the layers before it make of a part with that part's own statistics, and keeps the mean
        over parts. The encoder is left as it was otherwise; without batch norm nothing changes.

        Parameters
        ----------
        parts
            Patches as for :meth:`forward`, in parts of equal size that are alike: mixed from all slides.
        """
        norms = [module for module in self.trunk.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        before = [(norm, norm.training, norm.momentum) for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over parts
            norm.train()
        try:
            for part in parts:
                self.embed_raw(part)
        finally:
            for norm, training, momentum in before:
                norm.train(training)
                norm.momentum = momentum

    def embed_raw(self, patches: Tensor) -> Tensor:
        """Embed patches without :class:`Standardise`, (n, 3, h, w) to (n, F); features are embeddings already."""
        if patches.ndim == 2:
            return patches
        out: Tensor = self.trunk((patches - self.mean) / self.std)  # (n, F), or tokens (n, L, F / 2)
        if self._pooling == "cls+mean":
            prefix = int(self.trunk.num_prefix_tokens)  # type: ignore[arg-type]
            out = torch.cat([out[:, 0], out[:, prefix:].mean(1)], dim=-1)  # (n, F)
        return out

    def undecayed(self) -> set[str]:
        """Names of parameters with more than one axis that must have no weight decay: positions and tokens."""
        asked: set[str] = getattr(self.trunk, "no_weight_decay", set)()
        tokens = {name for name, _ in self.trunk.named_parameters() if re.search(r"(^|_)(token|embed)$", name)}
        return {f"trunk.{name}" for name in asked | tokens}

    def check_patch(self, patch_px: int) -> None:
        """Refuse patches of a side that the architecture cannot take.

        Raises
        ------
        RecipeError
            Names the side it takes.
        """
        cut: Any = getattr(self.trunk, "patch_embed", None)
        size, step = getattr(cut, "img_size", None), getattr(cut, "patch_size", None)
        if size is not None and getattr(cut, "strict_img_size", False) and patch_px != size[0]:
            raise RecipeError(
                f"key `tiles.patch_px`: encoder {self.spec.name} takes patches of {size[0]} px only, not {patch_px}; "
                f"set it to {size[0]}"
            )
        if step is not None and not getattr(cut, "dynamic_img_pad", False) and patch_px % step[0]:
            raise RecipeError(
                f"key `tiles.patch_px`: encoder {self.spec.name} takes patches whose side is a multiple of {step[0]} "
                f"px, not {patch_px}; set it to {max(1, round(patch_px / step[0])) * step[0]}"
            )

    def take_trunk(self) -> nn.Module:
        """Take the trunk out, for training on stored features; it goes back into the checkpoint."""
        trunk, self.trunk = self.trunk, StoredTrunk()
        return trunk

    def train(self, mode: bool = True) -> Self:
        """Switch to training; frozen parts and frozen batch norm stay in evaluation mode."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        if self.spec.frozen_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def encoder_spec(name: str, *, norm: Literal["auto", "batch", "group"], has_weights: bool) -> EncoderSpec:
    """Resolve ``norm: auto`` and check the name.

    Raises
    ------
    RecipeError
        Unknown encoder or preset, or a normalisation that it cannot have.
    """
    is_resnet = _RESNET.fullmatch(_plain(name)) is not None
    if not is_resnet and not _plain(name).startswith(TIMM):
        raise RecipeError(
            f"key `model.encoder`: unknown encoder `{name}`; use resnet18, resnet34, resnet50, resnet101, a "
            "truncated one such as resnet18-2, timm:NAME, or preset:NAME from `wsi-ips encoders`"
        )
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
        Architecture and normalisation; the encoder's own ``spec`` also holds what the model's page says of it.
    pretrained
        Load the published weights; needs the network or a filled cache.
    weights
        Load weights from a local file instead: ``.safetensors``, or ``.bin``, ``.pth``, ``.pt`` that hold tensors
        only. For a model of the hub its ``config.json`` may lie beside it, so that no network is needed.

    Raises
    ------
    CheckpointError
        The weights cannot be had or do not fit.
    RecipeError
        timm does not know the name.
    """
    if spec.features:
        return Encoder(StoredTrunk(), spec=spec, width=spec.features)
    match = _RESNET.fullmatch(_plain(spec.name))
    published = pretrained and weights is None
    encoder = _resnet(spec, match, published) if match else _timm(spec, published, weights)
    if weights is not None:
        tensors = read_weights(weights, wanted=list(encoder.trunk.state_dict()))
        try:
            encoder.trunk.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"encoder weights {weights}: do not fit {spec.name}: {error}") from error
    return encoder


def _plain(name: str) -> str:
    """The name behind a preset, else the name."""
    preset = find_preset(name)
    return name if preset is None else preset.model


def _resnet(spec: EncoderSpec, match: re.Match[str], pretrained: bool) -> Encoder:
    from torchvision import models

    norm_layer: Any = partial(nn.GroupNorm, GROUPS) if spec.norm == "group" else nn.BatchNorm2d
    try:
        # Residual branches that start at zero: measured to learn from the first steps on (DECISIONS.md).
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


def _timm(spec: EncoderSpec, pretrained: bool, weights: Path | None) -> Encoder:
    import timm
    from timm.data.config import resolve_data_config

    preset, name = find_preset(spec.name), _plain(spec.name).removeprefix(TIMM)
    pooling: PoolingOfTokens = preset.pooling if preset else "model"
    spec = _with_config(spec, name, weights)
    source = name if pretrained or not spec.architecture else spec.architecture
    arguments = {**timm_arguments(spec.arguments), **_GLOBAL_POOL[pooling]}
    try:
        trunk: Any = timm.create_model(source, pretrained=pretrained, num_classes=0, **arguments)
    except OSError as error:
        raise access_explained(spec.name, error) from error
    except (RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(f"key `model.encoder`: timm cannot build `{name}`: {error}") from error
    if spec.norm == "group":
        group_normed(trunk)
    data = resolve_data_config({}, model=trunk)
    return Encoder(
        trunk,
        spec=spec,
        width=int(trunk.num_features) * (2 if pooling == "cls+mean" else 1),
        mean=spec.mean or data["mean"],
        std=spec.std or data["std"],
        pooling=pooling,
    )


def group_normed(module: nn.Module) -> None:
    """Put group norm in the place of all batch norm within a module, scale and shift kept.

    Statistics of a batch would be those of the winners only, and the scan would see another network than the learner.
    """
    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm2d):
            norm = nn.GroupNorm(math.gcd(GROUPS, part.num_features), part.num_features, part.eps)
            norm.load_state_dict({"weight": part.weight, "bias": part.bias})
            within = [getattr(part, step) for step in ("drop", "act") if hasattr(part, step)]  # timm's own has these
            setattr(module, name, nn.Sequential(norm, *within) if within else norm)
        else:
            group_normed(part)


def _with_config(spec: EncoderSpec, name: str, weights: Path | None) -> EncoderSpec:
    """The spec with what the model's page says of it; as it is for models that timm itself describes."""
    preset = find_preset(spec.name)
    extra = dict(preset.arguments) if preset else {}
    if spec.architecture or not is_on_hub(name):
        return spec if spec.architecture else replace(spec, arguments=extra)
    try:
        config = hub_config(name, beside=weights)
    except OSError as error:
        raise access_explained(spec.name, error) from error
    return replace(
        spec,
        architecture=config.architecture,
        arguments={**config.arguments, **extra},
        mean=config.mean,
        std=config.std,
    )
