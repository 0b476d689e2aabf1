"""What turns the tiles of a slide into one vector per query, and scores tiles for selection.

All poolings keep one contract, :class:`Pooling`; ``attention.CrossAttentionPooling`` is the one of the method, those
here are comparisons. A tile's logit depends on that tile only, so that selection in one pass stays exact; padding
and the other slides of a batch change nothing.

Shapes: B slides, K tiles kept of a slide (padded, with a mask), n tiles, T queries, H heads, D width of an embedding,
L width of the gate.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn


class Pooling(nn.Module):
    """Contract of all poolings; called as ``pooling(embeddings, mask)``.

    Attributes
    ----------
    ranks
        Whether logits tell tiles apart; where not, an even sample of tiles is kept instead of the best.
    """

    ranks = True

    @abstractmethod
    def logits(self, embeddings: Tensor) -> Tensor:
        """Logit of each tile before any softmax, shape (..., D) to (..., T, H)."""

    @abstractmethod
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

    @abstractmethod
    def alone(self, embeddings: Tensor) -> Tensor:
        """Pool each tile as if it were the whole slide, shape (n, D) to (n, T, D)."""

    @abstractmethod
    def without_each(self, embeddings: Tensor) -> Tensor:
        """Pool the kept tiles of one slide K times, each time without one of them.

        In closed form: no softmax is taken anew for each tile, so the cost grows with K and not with its square. Equal
        to :meth:`forward` on the K - 1 others in evaluation mode.

        Parameters
        ----------
        embeddings
            Shape (K, D); at least two tiles.

        Returns
        -------
        torch.Tensor
            Shape (K, T, D); row k is the slide without tile k.
        """


class GatedAttentionPooling(Pooling):
    """Gated attention of Ilse, Tomczak and Welling, 2018 (equation 9), one scorer per query; H is 1.

    ``logit = w · (tanh(V h) ⊙ sigmoid(U h))``; the pooled vector is the mean of embeddings weighted by the softmax
    of logits. Dropout falls on the pooled vector; the paper has none.
    """

    def __init__(self, width: int, *, queries: int = 1, key_width: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.to_content = nn.Linear(width, key_width)  # V, D to L
        self.to_gate = nn.Linear(width, key_width)  # U, D to L
        self.to_logit = nn.Linear(key_width, queries, bias=False)  # w, L to T
        self.dropout = nn.Dropout(dropout)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Shape (..., D) to (..., T, 1)."""
        gated = self.to_content(embeddings).tanh() * self.to_gate(embeddings).sigmoid()  # (..., L)
        out: Tensor = self.to_logit(gated).unsqueeze(-1)  # (..., T, 1)
        return out

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Shape (B, K, D), (B, K) to (B, T, D)."""
        attention = _masked(self.logits(embeddings)[..., 0], mask).softmax(dim=1)  # (B, K, T)
        out: Tensor = self.dropout(torch.einsum("bkt,bkd->btd", attention, embeddings))
        return out

    def alone(self, embeddings: Tensor) -> Tensor:
        """Shape (n, D) to (n, T, D): the embedding itself, its attention is 1."""
        out: Tensor = self.dropout(_per_query(embeddings, self.to_logit.out_features))
        return out

    def without_each(self, embeddings: Tensor) -> Tensor:
        """Shape (K, D) to (K, T, D)."""
        out: Tensor = self.dropout(means_without_each(self.logits(embeddings)[..., 0], embeddings[:, None]))
        return out


class MeanPooling(Pooling):
    """Mean of the kept tiles, the same for every query.

    No tile counts more than another, so the logit is 0 for all, attention is even, and the tiles kept are an even
    sample of the slide (``rules.even``): their mean estimates the mean of all tiles.
    """

    ranks = False

    def __init__(self, *, queries: int = 1, dropout: float = 0.1) -> None:
        super().__init__()
        self.queries = queries
        self.dropout = nn.Dropout(dropout)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Zeros, shape (..., D) to (..., T, 1)."""
        return embeddings.new_zeros(*embeddings.shape[:-1], self.queries, 1)

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Shape (B, K, D), (B, K) to (B, T, D)."""
        tiles = embeddings.masked_fill(~mask[..., None], 0)  # (B, K, D)
        mean = tiles.sum(1) / mask.sum(1, keepdim=True)  # (B, D)
        out: Tensor = self.dropout(_per_query(mean, self.queries))
        return out

    def alone(self, embeddings: Tensor) -> Tensor:
        """Shape (n, D) to (n, T, D): the embedding itself."""
        out: Tensor = self.dropout(_per_query(embeddings, self.queries))
        return out

    def without_each(self, embeddings: Tensor) -> Tensor:
        """Shape (K, D) to (K, T, D)."""
        out: Tensor = self.dropout(means_without_each(self.logits(embeddings)[..., 0], embeddings[:, None]))
        return out


class MaxPooling(Pooling):
    """The one tile with the highest learned logit of each query, times the sigmoid of that logit; H is 1.

    The sigmoid lets the loss teach the logit, which a bare argmax would not (Gao and Ji, 2019, section 3.1). With one
    query the result does not depend on M: the best of the kept tiles is the best of the slide.
    """

    def __init__(self, width: int, *, queries: int = 1, dropout: float = 0.1) -> None:
        super().__init__()
        self.to_logit = nn.Linear(width, queries)
        self.dropout = nn.Dropout(dropout)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Shape (..., D) to (..., T, 1)."""
        out: Tensor = self.to_logit(embeddings).unsqueeze(-1)
        return out

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Shape (B, K, D), (B, K) to (B, T, D)."""
        highest, tile = _masked(self.to_logit(embeddings), mask).max(dim=1)  # both (B, T)
        best = embeddings.take_along_dim(tile[..., None], dim=1)  # (B, T, D)
        out: Tensor = self.dropout(best * highest.sigmoid()[..., None])
        return out

    def alone(self, embeddings: Tensor) -> Tensor:
        """Shape (n, D) to (n, T, D): the embedding times the sigmoid of its logit."""
        out: Tensor = self.dropout(embeddings[:, None] * self.to_logit(embeddings).sigmoid()[..., None])
        return out

    def without_each(self, embeddings: Tensor) -> Tensor:
        """Shape (K, D) to (K, T, D): the best tile, and the second best where the best is left out."""
        logits = self.to_logit(embeddings)  # (K, T)
        best = logits.argmax(0, keepdim=True)  # (1, T)
        second = logits.scatter(0, best, -torch.inf).argmax(0, keepdim=True)  # (1, T)
        number = torch.arange(len(embeddings), device=embeddings.device)[:, None]  # (K, 1)
        tile = torch.where(number == best, second, best)  # (K, T)
        out: Tensor = self.dropout(embeddings[tile] * logits.gather(0, tile).sigmoid()[..., None])
        return out


def selection_weights(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean attention of the kept tiles over heads; sums to 1 per slide and query.

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


def means_without_each(logits: Tensor, values: Tensor) -> Tensor:
    """Means of K values weighted by the softmax of their logits, K times, each time without one of them.

    With weights a and mean m of all, the mean without tile k is ``(m - a_k v_k) / (1 - a_k)``. Where a_k is near 1 that
    is a difference of equals, so the mean without the heaviest tile is summed from the others; every other weight is at
    most a half.

    Parameters
    ----------
    logits
        Shape (K, G...), K at least 2; each of G (queries, heads) has a softmax of its own.
    values
        Shape (K, G..., E), or 1 in place of a G.

    Returns
    -------
    torch.Tensor
        Shape (K, G..., E); computed in float64, of the type of ``values``.
    """
    wide, attention = values.double(), logits.double().softmax(0)[..., None]  # (K, G..., E), (K, G..., 1)
    mean = (attention * wide).sum(0, keepdim=True)
    heaviest = logits.argmax(0, keepdim=True)  # (1, G...)
    others = logits.double().scatter(0, heaviest, -torch.inf).softmax(0)[..., None]
    without_heaviest = (others * wide).sum(0, keepdim=True)
    number = torch.arange(len(logits), device=logits.device).view(-1, *[1] * (logits.ndim - 1))  # (K, 1, ...)
    is_heaviest = (number == heaviest)[..., None]
    rest = torch.where(is_heaviest, 1.0, 1 - attention)  # 1 in place of what may be 0
    return torch.where(is_heaviest, without_heaviest, (mean - attention * wide) / rest).to(values.dtype)


def _masked(logits: Tensor, mask: Tensor) -> Tensor:
    """Minus infinity where no tile is, shape (B, K, T)."""
    return logits.masked_fill(~mask[..., None], -torch.inf)


def _per_query(vectors: Tensor, queries: int) -> Tensor:
    """(n, D) to (n, T, D)."""
    return vectors[:, None].expand(-1, queries, -1)
