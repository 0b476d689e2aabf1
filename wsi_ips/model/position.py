"""The place of a tile, added to its embedding.

Source: the sinusoids of Vaswani et al., 2017, half of the width for x and half for y, as in the published code for
grids. Here positions are physical, so that they mean the same at any scale and stride.

Shapes: n tiles, N tiles of a slide, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
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
        """Compute the vectors to add to embeddings.

        Parameters
        ----------
        xy_um
            Centres of tiles in µm from the upper left corner of the scanned area, shape (n, 2).

        Returns
        -------
        torch.Tensor
            Shape (n, D): sine and cosine of x, sine and cosine of y.
        """
        angle = xy_um[:, :, None].to(self.frequency) * self.frequency  # (n, 2, D / 4)
        return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (n, D)


class TilePositions:
    """Position vectors of the tiles of a batch of slides; None where the network uses none.

    Parameters
    ----------
    position
        Of the network.
    centres_um
        Centres of the tiles of each slide, µm, shape (N, 2).
    """

    def __init__(self, position: SinusoidalPosition | None, centres_um: Sequence[NDArray[np.floating]]) -> None:
        self._position, self._centres_um = position, centres_um

    def __call__(self, slot: NDArray[np.integer], tile: NDArray[np.integer]) -> Tensor | None:
        """Return the vectors of tiles, given their slide's position in the batch and their id, shape (n, D)."""
        if self._position is None:
            return None
        centres = np.empty((len(tile), 2))
        for number, all_centres in enumerate(self._centres_um):
            rows = slot == number
            centres[rows] = all_centres[tile[rows]]
        vectors: Tensor = self._position(torch.from_numpy(centres).to(self._position.frequency))
        return vectors
