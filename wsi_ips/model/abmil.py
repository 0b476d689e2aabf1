"""Gated attention (ABMIL), for comparison.

Shapes: B slides, K tiles kept of a slide, n tiles, T queries, D width of an embedding, L width of the gate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsi_ips.model.pooling import Pooling


class GatedAttentionPooling(Pooling):
    """Gated attention of Ilse, Tomczak and Welling, 2018 (equation 9), one scorer per query.

    ``logit = w · (tanh(V h) ⊙ sigmoid(U h))``; the pooled vector is the mean of the embeddings, weighted by the softmax
    of the logits. Dropout acts on the pooled vector; the paper has none. It has one head, whatever ``heads`` says.
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
