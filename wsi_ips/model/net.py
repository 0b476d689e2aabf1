"""The whole network: encoder, pooling, one linear head.

Shapes: n patches of h x w pixels, B slides, K kept tiles, T queries, H heads, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsi_ips.model.attention import CrossAttentionPooling
from wsi_ips.model.encoder import Encoder


@dataclass(frozen=True)
class TileScores:
    """What one scan says of n tiles.

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
    """Encoder, cross-attention pooling and a linear head for one task."""

    def __init__(
        self, encoder: Encoder, *, classes: int, heads: int = 8, key_width: int = 64, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = CrossAttentionPooling(encoder.width, heads=heads, key_width=key_width, dropout=dropout)
        self.head = nn.Linear(encoder.width, classes)

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Class logits of slides from their kept tiles.

        Parameters
        ----------
        embeddings
            Shape (B, K, D).
        mask
            bool, shape (B, K).

        Returns
        -------
        torch.Tensor
            Shape (B, C), before the softmax.
        """
        out: Tensor = self.head(self.pooling(embeddings, mask)[:, 0])  # (B, C)
        return out

    def score(self, patches: Tensor, *, with_probability: bool) -> TileScores:
        """Score tiles for selection and, on request, each tile alone.

        Parameters
        ----------
        patches
            Float in 0-1, shape (n, 3, h, w).
        with_probability
            Also compute the class probabilities of each tile as a bag of one.
        """
        embeddings = self.encoder(patches)  # (n, D)
        logits = self.pooling.logits(embeddings)  # (n, T, H)
        if not with_probability:
            return TileScores(logits, None)
        return TileScores(logits, self.head(self.pooling.alone(embeddings)[:, 0]).softmax(-1))  # (n, C)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Parameters for the optimiser: norms, biases and queries have no weight decay."""
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in self._trainable():
            is_free = parameter.ndim < 2 or name.endswith("pooling.queries")
            (free if is_free else decayed).append(parameter)
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)


def to_float(pixels: Tensor) -> Tensor:
    """Patches as the encoder wants them: uint8 (n, h, w, 3) to float 0-1 (n, 3, h, w), channels last.

    The permutation is a view, so the result has channels-last memory without a copy of its own.
    """
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255)
