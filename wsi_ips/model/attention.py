"""Cross-attention pooling: the scorer of the scan and the pooling of the learner are one block.

Source: Bergner et al., ICLR 2023, section 3 and appendix; layout of the block as in the published code.

Shapes: B slides, K tiles kept of a slide (padded, with a mask), n tiles of a chunk, T queries, H heads,
E key and value width of a head, D width of an embedding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wsi_ips.model.pooling import Pooling, means_without_each

NORM_EPS = 1e-6
"""As in the published code; PyTorch's default is 1e-5."""


class CrossAttentionPooling(Pooling):
    """T learned queries attend to the tiles of a slide.

    ``x = LN(q + dropout(W_o · attention · values)); x = LN(x + dropout(MLP(x)))`` with the query as the
    residual, post-norm, bias-free key, query and value projections. The logit of a tile depends on that
    tile and the query only, never on other tiles: this is what makes one-pass selection exact.
    """

    def __init__(
        self, width: int, *, queries: int = 1, heads: int = 8, key_width: int = 64, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.heads, self.key_width = heads, key_width
        bound = 1 / math.sqrt(key_width)
        self.queries = nn.Parameter(torch.empty(queries, width).uniform_(-bound, bound))  # (T, D)
        self.to_query = nn.Linear(width, heads * key_width, bias=False)
        self.to_key = nn.Linear(width, heads * key_width, bias=False)
        self.to_value = nn.Linear(width, heads * key_width, bias=False)
        self.to_out = nn.Linear(heads * key_width, width, bias=False)
        self.attention_dropout = nn.Dropout(dropout)
        self.dropout = nn.Dropout(dropout)
        self.norm_attention = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.norm_mlp = nn.LayerNorm(width, eps=NORM_EPS)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Attention logit of each tile, before any softmax.

        Parameters
        ----------
        embeddings
            Shape (..., D).

        Returns
        -------
        torch.Tensor
            Shape (..., T, H): ``q · k / sqrt(E)``.
        """
        query = self._per_head(self.to_query(self.queries))  # (T, H, E)
        key = self._per_head(self.to_key(embeddings))  # (..., H, E)
        return torch.einsum("the,...he->...th", query, key) / math.sqrt(self.key_width)

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Pool the tiles of each slide.

        Parameters
        ----------
        embeddings
            Shape (B, K, D); rows of padding may hold anything finite.
        mask
            bool, shape (B, K), True where a tile is; at least one per slide.

        Returns
        -------
        torch.Tensor
            Shape (B, T, D).
        """
        logits = self.logits(embeddings).masked_fill(~mask[:, :, None, None], -torch.inf)  # (B, K, T, H)
        attention = self.attention_dropout(logits.softmax(dim=1))  # (B, K, T, H)
        values = self._per_head(self.to_value(embeddings))  # (B, K, H, E)
        return self._finish(torch.einsum("bkth,bkhe->bthe", attention, values).flatten(2))  # (B, T, D)

    def alone(self, embeddings: Tensor) -> Tensor:
        """Pool each tile as if it were the whole slide ("bag of one"): its attention is 1.

        Parameters
        ----------
        embeddings
            Shape (n, D).

        Returns
        -------
        torch.Tensor
            Shape (n, T, D); equal to :meth:`forward` on n slides of one tile in evaluation mode.
        """
        pooled = self.to_value(embeddings)  # (n, H·E)
        return self._finish(pooled[:, None].expand(-1, len(self.queries), -1))  # (n, T, D)

    def without_each(self, embeddings: Tensor) -> Tensor:
        """Shape (K, D) to (K, T, D): attention and values in closed form, then norms and MLP K times."""
        values = self._per_head(self.to_value(embeddings))[:, None]  # (K, 1, H, E)
        return self._finish(means_without_each(self.logits(embeddings), values).flatten(2))  # (K, T, D)

    def _per_head(self, projected: Tensor) -> Tensor:
        """(..., H·E) to (..., H, E)."""
        return projected.reshape(*projected.shape[:-1], self.heads, self.key_width)

    def _finish(self, pooled: Tensor) -> Tensor:
        x = self.norm_attention(self.queries + self.dropout(self.to_out(pooled)))  # (B, T, D)
        out: Tensor = self.norm_mlp(x + self.dropout(self.mlp(x)))  # (B, T, D)
        return out
