"""The whole network: encoder, pooling, one linear head per task.

Shapes: n patches of h x w pixels, B slides, K kept tiles, T queries (one per task), H heads, D width, C classes of all
tasks together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder import Encode, Encoder
from wsi_ips.model.pooling import Pooling
from wsi_ips.model.poolings import POOLINGS
from wsi_ips.model.task_losses import probabilities


@dataclass(frozen=True)
class TileScores:
    """Scores of n tiles in one scan."""

    logits: Tensor  # raw attention logits, shape (n, T, H)
    probability: Tensor | None  # class probabilities of each tile alone, shape (n, C), or None where not asked for


class IpsNet(nn.Module):
    """Encoder, pooling and a linear head per task."""

    def __init__(self, encoder: Encoder, settings: NetSettings = NetSettings()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.tasks = settings.tasks
        self.encoder = encoder
        self.pooling: Pooling = POOLINGS[settings.pooling].load()(
            encoder.width,
            queries=len(self.tasks),
            heads=settings.heads,
            key_width=settings.key_width,
            dropout=settings.dropout,
        )
        self.head = nn.Linear(encoder.width, sum(task.width for task in self.tasks))
        self.position = SinusoidalPosition(encoder.width) if settings.position == "sinusoidal" else None

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Compute class logits of slides from their kept tiles, (B, K, D) with mask (B, K) to (B, C)."""
        return self.classify(self.pooling(embeddings, mask))

    def classify(self, pooled: Tensor) -> Tensor:
        """Compute class logits, each task from its own query, shape (..., T, D) to (..., C)."""
        widths = [task.width for task in self.tasks]
        heads = zip(self.head.weight.split(widths), self.head.bias.split(widths), strict=True)
        parts = [functional.linear(pooled[..., t, :], weight, bias) for t, (weight, bias) in enumerate(heads)]
        return torch.cat(parts, dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn class logits into probabilities, shape (..., C)."""
        return probabilities(logits, self.tasks)

    def score(
        self, patches: Tensor, *, with_probability: bool, encode: Encode | None = None, position: Tensor | None = None
    ) -> TileScores:
        """Score patches (n, 3, h, w) for selection and, on request, each as a bag of one.

        ``encode`` is a faster equivalent of the encoder; ``position``, (n, D), is added to the embeddings.
        """
        embeddings = (encode or self.encoder)(patches)  # (n, D)
        embeddings = embeddings if position is None else embeddings + position
        logits = self.pooling.logits(embeddings)  # (n, T, H)
        if not with_probability:
            return TileScores(logits, None)
        return TileScores(logits, self.probabilities(self.classify(self.pooling.alone(embeddings))))  # (n, C)

    def parameter_groups(
        self, weight_decay: float, *, trunk_rate: float = 1.0, decay_all: bool = False
    ) -> list[dict[str, object]]:
        """Group parameters for the optimiser: norms, biases, queries, tokens, positions have no weight decay.

        With ``decay_all`` they have, as in the published code.

        ``rate`` of a group is its learning rate divided by that of the heads: ``trunk_rate`` for the encoder's trunk, 1
        for the rest and for the new weights of LoRA.
        """
        undecayed = {f"encoder.{name}" for name in self.encoder.undecayed()}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, False): [], (1.0, True): []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                is_free = parameter.ndim < 2 or name.endswith("pooling.queries") or name in undecayed
                is_free = is_free and not decay_all
                given = name.startswith("encoder.trunk.") and ".lora_" not in name
                groups.setdefault((trunk_rate if given else 1.0, is_free), []).append(parameter)
        return [
            {"params": parameters, "weight_decay": 0.0 if is_free else weight_decay, "rate": rate}
            for (rate, is_free), parameters in groups.items()
        ]


def to_float(pixels: Tensor) -> Tensor:
    """Convert uint8 (n, h, w, 3) to float 0-1 (n, 3, h, w), channels last; features, float16 (n, F), to float32.

    The permutation is a view, so the result has channels-last memory without a further copy.
    """
    if pixels.ndim == 2:
        return pixels.to(torch.float32)
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255)


UNIT_UM = 128.0  # the shortest wavelength is 2π units: 0.8 mm. The longest is 10 000 times that
LONGEST = 10_000.0


class SinusoidalPosition(nn.Module):
    """Position of a tile, added to its embedding: fixed 2-D sinusoids; the width must be a multiple of 4.

    Source: the sinusoids of Vaswani et al., 2017, half of the width for x and half for y. The published code of
    Bergner et al., 2023, has one sinusoid over the number of the patch, row by row; with it, neighbours above and below
    are far apart. Here positions are physical, so that they mean the same at any scale, stride and outline of tissue.
    """

    frequency: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"a position needs an embedding whose width is a multiple of 4, not {width}")
        quarter = width // 4
        frequency = torch.exp(-math.log(LONGEST) * torch.arange(quarter) / quarter) / UNIT_UM  # (D / 4,)
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, xy_um: Tensor) -> Tensor:
        """Return the vectors of tile centres in µm, (n, 2) to (n, D): sine and cosine of x, sine and cosine of y."""
        angle = xy_um[:, :, None].to(self.frequency) * self.frequency  # (n, 2, D / 4)
        return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (n, D)
