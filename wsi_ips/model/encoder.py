"""The patch encoder: a trunk, the normalisation of its input, and a learned scale, shift or projector behind it.

Shapes: n patches or tiles, h x w pixels, F width of the trunk's output, D width of an embedding, P prefix tokens (class
and registers), L tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.errors import CheckpointError, RecipeError
from wsi_ips.model.checkpoint_card import EncoderSpec
from wsi_ips.model.encoders import PoolingOfTokens

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMPORTED = "imported:"  # prefix of the name of an encoder that another tool ran

Encode = Callable[[Tensor], Tensor]  # float patches in 0-1, shape (n, 3, h, w), to embeddings, shape (n, D)


class Standardise(nn.Module):
    """Scale and shift per channel, initialised so that embeddings have mean 0 and standard deviation 1.

    Group norm removes most differences between tiles from a pooled embedding: they differ by a few per cent, and
    training from scratch makes no progress for hundreds of steps. Initialising from some tiles before the first step
    solves this (data-dependent initialisation: Kingma and Dhariwal, 2018, section 3.1). Afterwards scale and shift are
    ordinary parameters, so the embedding of a tile never depends on other tiles.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    @torch.no_grad()
    def start(self, embeddings: Tensor) -> None:
        """Set scale and shift from the input of this layer, shape (n, D), n > 1."""
        deviation = embeddings.std(0).clamp_min(1e-3)
        self.weight.copy_(1 / deviation)
        self.bias.copy_(-embeddings.mean(0) / deviation)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scale and shift embeddings, (n, D) to (n, D)."""
        return embeddings * self.weight + self.bias


class Unchanged(nn.Identity):
    """What stands in the place of :class:`Standardise` where the published code has nothing."""

    def start(self, embeddings: Tensor) -> None:
        """Do nothing."""


class Projector(nn.Module):
    """A learned map to a smaller width: ``relu(standardise(linear(layer_norm(x))))``, F to D.

    The projector of the published CAMELYON16 configuration (Bergner et al., 2023, appendix), with :class:`Standardise`
    instead of batch norm: batch norm would learn the statistics of the kept tiles only and score all tiles with them.
    """

    def __init__(self, width: int, projected: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, projected)
        self.standardise = Standardise(projected)

    @torch.no_grad()
    def start(self, embeddings: Tensor) -> None:
        """Initialise scale and shift from the output of the trunk, shape (n, F), n > 1."""
        self.standardise.start(self._mapped(embeddings))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Project embeddings, (n, F) to (n, D)."""
        out: Tensor = self.standardise(self._mapped(embeddings)).relu()
        return out

    def _mapped(self, embeddings: Tensor) -> Tensor:
        mapped: Tensor = self.linear(functional.layer_norm(embeddings, (self.width,)))
        return mapped


class StoredTrunk(nn.Module):
    """Placeholder for the trunk of a model on stored features: it has no weights and takes no pixels."""

    def forward(self, patches: Tensor) -> Tensor:
        """Refuse pixels."""
        raise CheckpointError(
            f"{len(patches)} patches for a model that takes stored features only and lacks the encoder that made them: "
            "import the features of this slide (`features.imported`)"
        )


class Encoder(nn.Module):
    """Patches to embeddings, with the input normalisation the weights expect.

    It also takes stored features, the output of its trunk, shape (n, F).
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
        self.trunk = trunk.to(memory_format=torch.channels_last)  # the architecture without its classifier
        self.standardise: Projector | Standardise | Unchanged
        if spec.projector:
            self.standardise = Projector(width, spec.projector)
        else:
            self.standardise = Standardise(width) if spec.standardised else Unchanged()
        self.spec = spec
        self.width, self.trunk_width = spec.projector or width, width
        self.frozen: tuple[nn.Module, ...] = ()  # parts that stay in evaluation mode in training
        self._pooling = pooling
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches, float in 0-1, (n, 3, h, w), channels last for speed, or features, (n, F), to (n, D)."""
        out: Tensor = self.standardise(self.embed_raw(patches))  # (n, D)
        return out

    @torch.no_grad()
    def start(self, patches: Tensor) -> None:
        """Initialise :class:`Standardise` from some patches (or features) of the training slides."""
        self.standardise.start(self.embed_raw(patches))

    def embed_raw(self, patches: Tensor) -> Tensor:
        """Apply the trunk only, (n, 3, h, w) to (n, F); features pass through unchanged."""
        if patches.ndim == 2:
            return patches
        out: Tensor = self.trunk((patches - self.mean) / self.std)  # (n, F), or tokens (n, L, F / 2)
        if self._pooling == "cls+mean":
            prefix = int(self.trunk.num_prefix_tokens)  # type: ignore[arg-type]
            out = torch.cat([out[:, 0], out[:, prefix:].mean(1)], dim=-1)  # (n, F)
        return out

    def undecayed(self) -> set[str]:
        """Return the names of position embeddings and tokens, which must have no weight decay."""
        asked: set[str] = getattr(self.trunk, "no_weight_decay", set)()
        tokens = {name for name, _ in self.trunk.named_parameters() if re.search(r"(^|_)(token|embed)$", name)}
        return {f"trunk.{name}" for name in asked | tokens}

    def check_patch(self, patch_px: int) -> None:
        """Raise a `RecipeError` that suggests a side if the architecture does not accept patches of this one."""
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
        """Remove and return the trunk, for training on stored features; the checkpoint gets it back."""
        trunk, self.trunk = self.trunk, StoredTrunk()
        return trunk

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode; frozen parts and frozen batch norm stay in evaluation mode."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        if self.spec.frozen_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self
