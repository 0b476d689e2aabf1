"""Patch encoders: torchvision ResNets, whole or truncated, and any timm model by name.

Shapes: n patches, C channels, h x w pixels, D width of the embedding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from wsi_ips.errors import CheckpointError, RecipeError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GROUPS = 32

_RESNET = re.compile(r"(?P<name>resnet(?:18|34|50|101))(?:-(?P<stages>[1-4]))?")


@dataclass(frozen=True)
class EncoderSpec:
    """Everything needed to build an encoder again, without its weights.

    Attributes
    ----------
    name
        ``resnet18``, ``resnet18-2`` (first two of its four stages), ..., or ``timm:NAME``.
    norm
        ``batch`` or ``group``; only ResNets can be built with ``group``.
    frozen_statistics
        Batch norm uses its stored statistics also in training, so that the scan and the gradient pass
        see one and the same network.
    """

    name: str
    norm: Literal["batch", "group"]
    frozen_statistics: bool


class Standardise(nn.Module):
    """Scale and shift per channel, started so that embeddings have mean 0 and deviation 1.

    Group norm takes most differences between tiles out of a pooled embedding: they differ by a few per cent,
    and training from scratch stands still for hundreds of steps. One look at some tiles before
    the first step mends that (data-dependent start: Kingma and Dhariwal, 2018, section 3.1). Afterwards scale
    and shift are ordinary parameters, so no tile ever depends on its company.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    @torch.no_grad()
    def start(self, embeddings: Tensor) -> None:
        """Set scale and shift from embeddings before this layer, shape (n, D), n > 1."""
        deviation = embeddings.std(0).clamp_min(1e-3)
        self.weight.copy_(1 / deviation)
        self.bias.copy_(-embeddings.mean(0) / deviation)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Shape (n, D) to (n, D)."""
        return embeddings * self.weight + self.bias


class Encoder(nn.Module):
    """Patches to embeddings, with the input normalisation the weights expect.

    Attributes
    ----------
    trunk
        The architecture, its classifier taken off.
    standardise
        Scale and shift of its output.
    spec
        How it was built.
    width
        Width D of an embedding.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        *,
        spec: EncoderSpec,
        width: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.trunk = trunk.to(memory_format=torch.channels_last)
        self.standardise = Standardise(width)
        self.spec = spec
        self.width = width
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches.

        Parameters
        ----------
        patches
            Float in 0-1, shape (n, 3, h, w), channels-last memory for speed.

        Returns
        -------
        torch.Tensor
            Shape (n, D).
        """
        out: Tensor = self.standardise(self._raw(patches))  # (n, D)
        return out

    @torch.no_grad()
    def start(self, patches: Tensor) -> None:
        """Start :class:`Standardise` from some patches of the training slides, shape (n, 3, h, w)."""
        self.standardise.start(self._raw(patches))

    def _raw(self, patches: Tensor) -> Tensor:
        embeddings: Tensor = self.trunk((patches - self.mean) / self.std)  # (n, D)
        return embeddings

    def train(self, mode: bool = True) -> Self:
        """Switch to training; frozen batch norm stays in evaluation mode."""
        super().train(mode)
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
        Unknown encoder, or a normalisation that it cannot have.
    """
    is_resnet = _RESNET.fullmatch(name) is not None
    if not is_resnet and not name.startswith("timm:"):
        raise RecipeError(
            f"key `model.encoder`: unknown encoder `{name}`; use resnet18, resnet34, resnet50, resnet101, a "
            "truncated one such as resnet18-2, or timm:NAME"
        )
    if norm == "group" and (has_weights or not is_resnet):
        raise RecipeError(
            f"key `model.norm`: `group` fits a ResNet trained from scratch, not `{name}` with given weights; use `auto`"
        )
    group = norm == "group" or (norm == "auto" and is_resnet and not has_weights)
    return EncoderSpec(name, "group" if group else "batch", frozen_statistics=has_weights)


def build_encoder(spec: EncoderSpec, *, pretrained: bool = False, weights: Path | None = None) -> Encoder:
    """Build an encoder.

    Parameters
    ----------
    spec
        Architecture and normalisation.
    pretrained
        Load the published weights; needs the network or a filled cache.
    weights
        Load weights from a local safetensors file instead.

    Raises
    ------
    CheckpointError
        The weights cannot be had or do not fit.
    RecipeError
        timm does not know the name.
    """
    match = _RESNET.fullmatch(spec.name)
    encoder = _resnet(spec, match, pretrained) if match else _timm(spec, pretrained)
    if weights is not None:
        try:
            encoder.trunk.load_state_dict(load_file(weights))
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"encoder weights {weights}: do not fit {spec.name}: {error}") from error
    return encoder


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
        raise CheckpointError(
            f"encoder {spec.name}: the published weights cannot be fetched ({error}); give a local file in "
            "`model.weights`, or set `model.pretrained: false`"
        ) from error
    stages = [full.layer1, full.layer2, full.layer3, full.layer4][: int(match["stages"] or 4)]
    trunk = nn.Sequential(full.conv1, full.bn1, full.relu, full.maxpool, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    last = stages[-1][-1]
    width = (getattr(last, "conv3", None) or last.conv2).out_channels
    return Encoder(trunk, spec=spec, width=width)


def _timm(spec: EncoderSpec, pretrained: bool) -> Encoder:
    import timm
    from timm.data.config import resolve_data_config

    name = spec.name.removeprefix("timm:")
    try:
        trunk = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (RuntimeError, ValueError) as error:
        raise RecipeError(f"key `model.encoder`: timm cannot build `{name}`: {error}") from error
    except OSError as error:
        raise CheckpointError(f"encoder {spec.name}: weights cannot be fetched: {error}") from error
    data = resolve_data_config({}, model=trunk)
    return Encoder(
        trunk,
        spec=spec,
        width=int(trunk.num_features),  # type: ignore[arg-type]
        mean=data["mean"],
        std=data["std"],
    )
