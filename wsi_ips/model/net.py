"""The whole network: encoder, pooling, one linear head per task.

Shapes: n patches of h x w pixels, B slides, K kept tiles, T queries (one per task), H heads, D width, C classes of all
tasks together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.pooling import Pooling
from wsi_ips.model.poolings import POOLINGS
from wsi_ips.model.position import SinusoidalPosition
from wsi_ips.model.task_losses import probabilities

Encode = Callable[[Tensor], Tensor]
"""Float patches in 0-1, shape (n, 3, h, w), to embeddings, shape (n, D)."""


@dataclass(frozen=True)
class TileScores:
    """Scores of n tiles in one scan.

    Attributes
    ----------
    logits
        Raw attention logits, shape (n, T, H).
    probability
        Class probabilities of each tile alone, shape (n, C), or None where not asked for.
    """

    logits: Tensor
    probability: Tensor | None


class IpsNet(nn.Module):
    """Encoder, pooling and a linear head per task.

    Parameters
    ----------
    encoder
        Patches to embeddings.
    settings
        Tasks, pooling and position; a :class:`wsi_ips.model.checkpoint_card.ModelCard` is one.
    """

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
        """Compute the class logits of slides from their kept tiles.

        Parameters
        ----------
        embeddings
            Shape (B, K, D).
        mask
            bool, shape (B, K).

        Returns
        -------
        torch.Tensor
            Shape (B, C).
        """
        return self.classify(self.pooling(embeddings, mask))

    def classify(self, pooled: Tensor) -> Tensor:
        """Compute class logits from pooled vectors, each task from its own query, shape (..., T, D) to (..., C)."""
        widths = [task.width for task in self.tasks]
        heads = zip(self.head.weight.split(widths), self.head.bias.split(widths), strict=True)
        parts = [functional.linear(pooled[..., t, :], weight, bias) for t, (weight, bias) in enumerate(heads)]
        return torch.cat(parts, dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn class logits into probabilities, shape (..., C); softmax or sigmoid as each task has it."""
        return probabilities(logits, self.tasks)

    def score(
        self,
        patches: Tensor,
        *,
        with_probability: bool,
        encode: Encode | None = None,
        position: Tensor | None = None,
    ) -> TileScores:
        """Score tiles for selection and, on request, each tile alone.

        Parameters
        ----------
        patches
            Float in 0-1, shape (n, 3, h, w).
        with_probability
            Also compute the class probabilities of each tile as a bag of one.
        encode
            A faster equivalent of the encoder (:mod:`wsi_ips.model.scan_backends`); None is the encoder.
        position
            Added to the embeddings, shape (n, D).
        """
        embeddings = (encode or self.encoder)(patches)  # (n, D)
        embeddings = embeddings if position is None else embeddings + position
        logits = self.pooling.logits(embeddings)  # (n, T, H)
        if not with_probability:
            return TileScores(logits, None)
        return TileScores(logits, self.probabilities(self.classify(self.pooling.alone(embeddings))))  # (n, C)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Group the parameters for the optimiser: norms, biases, queries, tokens and positions have no weight decay."""
        undecayed = {f"encoder.{name}" for name in self.encoder.undecayed()}
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                is_free = parameter.ndim < 2 or name.endswith("pooling.queries") or name in undecayed
                (free if is_free else decayed).append(parameter)
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def to_float(pixels: Tensor) -> Tensor:
    """Convert patches for the encoder: uint8 (n, h, w, 3) to float 0-1 (n, 3, h, w), channels last.

    The permutation is a view, so the result has channels-last memory without a further copy. Stored features, float16
    (n, F), become float32.
    """
    if pixels.ndim == 2:
        return pixels.to(torch.float32)
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255)
