"""The whole network: encoder, pooling, one linear head per task.

Shapes: n patches of h x w pixels, B slides, K kept tiles, T queries (one per task), H heads, D width, C classes of all
tasks together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.labels import Task
from wsi_ips.model.attention import CrossAttentionPooling
from wsi_ips.model.card import PoolingName, PositionName
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.fused import Encode
from wsi_ips.model.pooling import (
    GatedAttentionPooling,
    MaxPooling,
    MeanPooling,
    Pooling,
    means_without_each,
    selection_weights,
)
from wsi_ips.model.position import SinusoidalPosition
from wsi_ips.model.rules import Rule, even, exact
from wsi_ips.model.tasks import probabilities


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
    """Encoder, pooling and a linear head per task.

    Parameters
    ----------
    encoder
        Patches to embeddings.
    classes
        Number of classes of the only task, a single-label one; or give ``tasks``.
    tasks
        Each has one query of the pooling and one linear head.
    heads, key_width, dropout
        Of the pooling block.
    pooling
        Its name.
    position
        Whether the place of a tile is added to its embedding.
    rule
        Chooses the tiles to keep; a pooling that scores all tiles alike takes an even sample instead.
    evidence
        The slide's logits are a sum over the kept tiles, see :meth:`evidences`; not with pooling `max`, which decides
        by one tile anyway.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        classes: int | None = None,
        tasks: Sequence[Task] = (),
        heads: int = 8,
        key_width: int = 64,
        dropout: float = 0.1,
        pooling: PoolingName = "attention",
        position: PositionName = "none",
        rule: Rule = exact,
        evidence: bool = False,
    ) -> None:
        super().__init__()
        if (classes is None) == (not tasks):
            raise ValueError("give either `classes` or `tasks`")
        if evidence and pooling == "max":
            raise ValueError("no `evidence` with pooling `max`")
        self.tasks = tuple(tasks) or (Task("label", tuple(map(str, range(classes or 0)))),)
        self.encoder = encoder
        self.pooling = build_pooling(
            pooling, encoder.width, queries=len(self.tasks), heads=heads, key_width=key_width, dropout=dropout
        )
        self.head = nn.Linear(encoder.width, sum(task.width for task in self.tasks))
        self.position = SinusoidalPosition(encoder.width) if position == "sinusoidal" else None
        self.rule = rule if self.pooling.ranks else even
        self.evidence = evidence

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
            Shape (B, C), before softmax or sigmoid; tasks side by side.
        """
        if self.evidence:
            return self.evidences(embeddings, mask).sum(1)  # (B, C)
        return self.classify(self.pooling(embeddings, mask))  # (B, C)

    def evidences(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """What each tile adds to the class logits of its slide, shape (B, K, D), (B, K) to (B, K, C).

        A tile's attention (mean over heads) times the logits it would have alone, so with one tile kept both agree; 0
        where there is no tile. In the spirit of additive MIL (Javed et al., 2022, equation 5), whose tiles are weighted
        before the classifier instead of after it.
        """
        shares = selection_weights(self.pooling.logits(embeddings), mask)  # (B, K, T)
        alone = self.classify(self.pooling.alone(embeddings.flatten(0, 1)))  # (B·K, C)
        widths = torch.tensor([task.width for task in self.tasks], device=shares.device)
        out: Tensor = shares.repeat_interleave(widths, dim=-1) * alone.view(*mask.shape, -1)  # (B, K, C)
        return out

    def without_each(self, embeddings: Tensor) -> Tensor:
        """Class logits of one slide K times, each time without one of its kept tiles, shape (K, D) to (K, C).

        Exact for the tiles kept, everything after the pooling included; what would move up in place of the tile left
        out is not looked for. Costs no pass through the encoder. K is at least 2.
        """
        if not self.evidence:
            return self.classify(self.pooling.without_each(embeddings))
        logits = self.pooling.logits(embeddings)  # (K, T, H)
        alone = self.classify(self.pooling.alone(embeddings)).split([task.width for task in self.tasks], dim=-1)
        return torch.cat([means_without_each(logits[:, t], e[:, None]).mean(1) for t, e in enumerate(alone)], -1)

    def classify(self, pooled: Tensor) -> Tensor:
        """Class logits of pooled vectors, each task from its own query, shape (..., T, D) to (..., C)."""
        widths = [task.width for task in self.tasks]
        heads = zip(self.head.weight.split(widths), self.head.bias.split(widths), strict=True)
        parts = [functional.linear(pooled[..., t, :], weight, bias) for t, (weight, bias) in enumerate(heads)]
        return torch.cat(parts, dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class probabilities from class logits, shape (..., C); softmax or sigmoid as each task has it."""
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
            A faster equal of the encoder (:func:`scan_encoder`); None is the encoder.
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
        """Parameters for the optimiser: norms, biases, queries, tokens and position embeddings have no weight decay."""
        undecayed = {f"encoder.{name}" for name in self.encoder.undecayed()}
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in self._trainable():
            is_free = parameter.ndim < 2 or name.endswith("pooling.queries") or name in undecayed
            (free if is_free else decayed).append(parameter)
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)


def build_pooling(
    name: PoolingName, width: int, *, queries: int, heads: int, key_width: int, dropout: float
) -> Pooling:
    """A pooling by its name in the recipe; `heads` matters to `attention` only, `key_width` also to `abmil`."""
    match name:
        case "attention":
            return CrossAttentionPooling(width, queries=queries, heads=heads, key_width=key_width, dropout=dropout)
        case "abmil":
            return GatedAttentionPooling(width, queries=queries, key_width=key_width, dropout=dropout)
        case "mean":
            return MeanPooling(queries=queries, dropout=dropout)
        case "max":
            return MaxPooling(width, queries=queries, dropout=dropout)


def to_float(pixels: Tensor) -> Tensor:
    """Patches as the encoder wants them: uint8 (n, h, w, 3) to float 0-1 (n, 3, h, w), channels last.

    The permutation is a view, so the result has channels-last memory without a copy of its own. Stored features,
    float16 (n, F), become float32.
    """
    if pixels.ndim == 2:
        return pixels.to(torch.float32)
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255)
