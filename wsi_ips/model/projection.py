"""What stands between the trunk of an encoder and the pooling; it learns in every mode, on pixels and on features.

Shapes: n tiles, F width of the trunk's output, D width of an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Standardise(nn.Module):
    """Scale and shift per channel, started so that embeddings have mean 0 and deviation 1.

    Group norm takes most differences between tiles out of a pooled embedding: they differ by a few per cent,
    and training from scratch stands still for hundreds of steps. One look at some tiles before
    the first step mends that (data-dependent start: Kingma and Dhariwal, 2018, section 3.1). Afterwards scale
    and shift are ordinary parameters, so no tile ever depends on its company.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    @torch.no_grad()
    def start(self, embeddings: Tensor) -> None:
        """Set scale and shift from embeddings before this layer, shape (n, D), n > 1."""
        deviation = embeddings.std(0).clamp_min(1e-3)
        self.weight.copy_(1 / deviation)
        self.bias.copy_(-embeddings.mean(0) / deviation)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Shape (n, D) to (n, D)."""
        return embeddings * self.weight + self.bias


class Projector(nn.Module):
    """A learned map to a smaller width: ``relu(standardise(linear(layer_norm(x))))``, F to D.

    The projector of the published CAMELYON16 configuration (Bergner et al., 2023, appendix), but for its batch norm:
    that would learn statistics of the kept tiles only and score all tiles with them, so :class:`Standardise` stands
    in its place.
    """

    def __init__(self, width: int, projected: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, projected)
        self.standardise = Standardise(projected)

    @torch.no_grad()
    def start(self, embeddings: Tensor) -> None:
        """As :meth:`Standardise.start`, from the output of the trunk, shape (n, F)."""
        self.standardise.start(self._mapped(embeddings))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Shape (n, F) to (n, D)."""
        out: Tensor = self.standardise(self._mapped(embeddings)).relu()
        return out

    def _mapped(self, embeddings: Tensor) -> Tensor:
        mapped: Tensor = self.linear(functional.layer_norm(embeddings, (self.width,)))
        return mapped
