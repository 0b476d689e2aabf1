"""Where a tile lies, added to its embedding.

Source: the sinusoids of Vaswani et al., 2017, half of the width for x and half for y, as the published code has them
for grids; here positions are physical, so that they mean the same at any scale and stride.

Shapes: n tiles, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

UNIT_UM = 128.0
"""The shortest wavelength is 2π units: 0.8 mm. The longest is 10 000 times that."""
LONGEST = 10_000.0


class SinusoidalPosition(nn.Module):
    """Fixed 2-D sinusoids; nothing is learned.

    Parameters
    ----------
    width
        Width of an embedding (D), a multiple of 4.
    """

    frequency: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"a position needs an embedding whose width is a multiple of 4, not {width}")
        quarter = width // 4
        frequency = torch.exp(-math.log(LONGEST) * torch.arange(quarter) / quarter) / UNIT_UM  # (D / 4,)
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, xy_um: Tensor) -> Tensor:
        """Vectors to be added to embeddings.

        Parameters
        ----------
        xy_um
            Centres of tiles in µm from the upper left corner of what was scanned, shape (n, 2).

        Returns
        -------
        torch.Tensor
            Shape (n, D): sine and cosine of x, sine and cosine of y.
        """
        angle = xy_um[:, :, None].to(self.frequency) * self.frequency  # (n, 2, D / 4)
        return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (n, D)
