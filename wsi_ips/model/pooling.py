"""Contract of all poolings: turn the tiles of a slide into one vector per query, and score tiles for selection.

Shapes: B slides, K tiles kept of a slide (padded, with a mask), n tiles, T queries, H heads, D width of an embedding.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn


class Pooling(nn.Module):
    """Contract of all poolings; called as ``pooling(embeddings, mask)``.

    The logit of a tile depends on that tile only, so that selection in one pass is exact. Padding and the other slides
    of a batch change nothing.
    """

    @abstractmethod
    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the logit of each tile before any softmax, shape (..., D) to (..., T, H)."""

    @abstractmethod
    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Pool the tiles of each slide.

        Parameters
        ----------
        embeddings
            Shape (B, K, D); rows of padding may hold anything finite.
        mask
            bool, shape (B, K), True where there is a tile; at least one per slide.

        Returns
        -------
        torch.Tensor
            Shape (B, T, D).
        """

    @abstractmethod
    def alone(self, embeddings: Tensor) -> Tensor:
        """Pool each tile as if it were the whole slide ("bag of one"), shape (n, D) to (n, T, D)."""


def selection_weights(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the attention of the kept tiles, averaged over heads; it sums to 1 per slide and query.

    Parameters
    ----------
    logits
        Shape (B, K, T, H).
    mask
        bool, shape (B, K).

    Returns
    -------
    torch.Tensor
        Shape (B, K, T); 0 where there is no tile.
    """
    masked = logits.masked_fill(~mask[:, :, None, None], -torch.inf)
    return masked.softmax(dim=1).mean(dim=3)
