"""A small encoder for the digits: three strided convolutions, group norm, the highest value of each channel.

Once this module is imported timm knows it: ``model.encoder: timm:digit_encoder``. At 32 px a tile costs a tenth of what
the first stage of a ResNet-18 does, and it learns the digits from fewer of them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

WIDTH = 32


class DigitEncoder(nn.Module):
    """Pixels, shape (n, 3, h, w), to embeddings, shape (n, 128)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, WIDTH, 2 * WIDTH, 4 * WIDTH)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.GroupNorm(8, after), nn.ReLU())
                for before, after in pairwise(widths)
            )
        )
        self.num_features = widths[-1]
        # The ground stays 0, so that a tile without ink says nothing.
        self.default_cfg = self.pretrained_cfg = {
            "input_size": (3, 32, 32),
            "mean": (0.0, 0.0, 0.0),
            "std": (0.4, 0.4, 0.4),
        }

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings."""
        return self.stages(pixels).amax((2, 3))


@register_model
def digit_encoder(pretrained: bool = False, **_: Any) -> DigitEncoder:
    """As timm builds it; there are no published weights."""
    if pretrained:
        raise RuntimeError("digit_encoder has no published weights")
    return DigitEncoder()
