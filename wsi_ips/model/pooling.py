"""Poolings: turn the tiles of a slide into one vector per query, and score tiles for selection.

Shapes: B slides, K tiles kept of a slide (padded, with a mask), n tiles of a chunk, T queries, H heads, D width of an
embedding, E key and value width of a head, L width of a gate.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import OrderedDict

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
    """Return the attention of kept tiles, mean over heads, (B, K, T, H) to (B, K, T); 0 outside the mask."""
    masked = logits.masked_fill(~mask[:, :, None, None], -torch.inf)
    return masked.softmax(dim=1).mean(dim=3)


NORM_EPS = 1e-6  # as in the published code; PyTorch's default is 1e-5


class CrossAttentionPooling(Pooling):
    """T learned queries attend to the tiles of a slide.

    ``x = LN(q + dropout(W_o · attention · values)); x = LN(x + dropout(MLP(x)))``: the query is the residual, norms
    come last, and the query, key and value projections have no bias. The logit of a tile depends on that tile and the
    query only, never on other tiles; this makes one-pass selection exact. Source: Bergner et al., ICLR 2023, section 3
    and appendix; layout of the block as in the published code.
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
        layers = {"0": nn.Linear(width, 4 * width), "1": nn.ReLU(), "3": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))  # these are the names in stored checkpoints
        self.norm_mlp = nn.LayerNorm(width, eps=NORM_EPS)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the logit of each tile, ``q · k / sqrt(E)``, shape (..., D) to (..., T, H)."""
        query = self._per_head(self.to_query(self.queries))  # (T, H, E)
        key = self._per_head(self.to_key(embeddings))  # (..., H, E)
        return torch.einsum("the,...he->...th", query, key) / math.sqrt(self.key_width)

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Pool the tiles of each slide, shapes (B, K, D) and (B, K) to (B, T, D)."""
        logits = self.logits(embeddings).masked_fill(~mask[:, :, None, None], -torch.inf)  # (B, K, T, H)
        attention = self.attention_dropout(logits.softmax(dim=1))  # (B, K, T, H)
        values = self._per_head(self.to_value(embeddings))  # (B, K, H, E)
        return self._finish(torch.einsum("bkth,bkhe->bthe", attention, values).flatten(2))  # (B, T, D)

    def alone(self, embeddings: Tensor) -> Tensor:
        """Pool each tile as if it were the whole slide, shape (n, D) to (n, T, D): its attention is 1.

        Equal to :meth:`forward` on n slides of one tile in evaluation mode.
        """
        pooled = self.to_value(embeddings)  # (n, H·E)
        return self._finish(pooled[:, None].expand(-1, len(self.queries), -1))  # (n, T, D)

    def _per_head(self, projected: Tensor) -> Tensor:
        return projected.reshape(*projected.shape[:-1], self.heads, self.key_width)

    def _finish(self, pooled: Tensor) -> Tensor:
        x = self.norm_attention(self.queries + self.dropout(self.to_out(pooled)))  # (B, T, D)
        out: Tensor = self.norm_mlp(x + self.dropout(self.mlp(x)))  # (B, T, D)
        return out


class GatedAttentionPooling(Pooling):
    """Gated attention of Ilse, Tomczak and Welling, 2018 (equation 9), one scorer per query.

    ``logit = w · (tanh(V h) ⊙ sigmoid(U h))``; the pooled vector is the mean of the embeddings, weighted by the softmax
    of the logits. Dropout acts on the pooled vector; the paper has none. It has one head and ignores ``heads``.
    """

    def __init__(
        self,
        width: int,
        *,
        queries: int = 1,
        heads: int = 1,  # noqa: ARG002
        key_width: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.to_content = nn.Linear(width, key_width)  # V, D to L
        self.to_gate = nn.Linear(width, key_width)  # U, D to L
        self.to_logit = nn.Linear(key_width, queries, bias=False)  # w, L to T
        self.dropout = nn.Dropout(dropout)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the logit of each tile, shape (..., D) to (..., T, 1)."""
        gated = self.to_content(embeddings).tanh() * self.to_gate(embeddings).sigmoid()  # (..., L)
        out: Tensor = self.to_logit(gated).unsqueeze(-1)  # (..., T, 1)
        return out

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Pool the tiles of each slide, shapes (B, K, D) and (B, K) to (B, T, D)."""
        logits = self.logits(embeddings)[..., 0].masked_fill(~mask[..., None], -torch.inf)  # (B, K, T)
        out: Tensor = self.dropout(torch.einsum("bkt,bkd->btd", logits.softmax(dim=1), embeddings))
        return out

    def alone(self, embeddings: Tensor) -> Tensor:
        """Return the embedding itself, since its attention is 1, shape (n, D) to (n, T, D)."""
        out: Tensor = self.dropout(embeddings[:, None].expand(-1, self.to_logit.out_features, -1))
        return out
