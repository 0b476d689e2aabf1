"""Per-tile augmentation that the scan and the gradient pass repeat exactly.

What happens to a patch depends only on (seed, epoch, slide, tile), never on its place in a chunk, so a
tile that won the scan is learned from the very pixels that won.

Shapes: n patches of h x w pixels.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STAIN_JITTER = 0.1
"""Largest relative change of optical density per colour channel."""


def tile_keys(*, seed: int, epoch: int, slide_id: str, tiles: NDArray[np.integer]) -> NDArray[np.uint64]:
    """One well-mixed 64-bit number per tile, shape (n,).

    The finaliser is SplitMix64 (Steele et al., 2014).
    """
    base = np.random.SeedSequence([abs(seed), epoch, zlib.crc32(slide_id.encode())])
    state = base.generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        z = state + (tiles.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def augment(patches: Tensor, keys: NDArray[np.uint64], *, jitter: float = STAIN_JITTER) -> Tensor:
    """Turn, flip and restain patches.

    Optical density ``-log(I)`` of each channel is multiplied by a factor in ``1 ± jitter``, which by the
    law of Beer and Lambert is a change of stain concentration: ``I ** factor``.

    Parameters
    ----------
    patches
        Float in 0-1, shape (n, 3, h, w) with h = w.
    keys
        From :func:`tile_keys`, shape (n,).
    jitter
        Largest relative change of optical density.

    Returns
    -------
    torch.Tensor
        New tensor, shape (n, 3, h, w).
    """
    turned = torch.empty_like(patches)
    code = (keys & np.uint64(7)).astype(np.int64)  # 4 turns x 2 mirrors
    for value in np.unique(code):
        rows = torch.from_numpy(np.flatnonzero(code == value)).to(patches.device)
        part = torch.rot90(patches[rows], int(value) & 3, (2, 3))
        turned[rows] = part.flip(3) if value & 4 else part
    shifts = np.array([8, 24, 40], np.uint64)
    uniform = ((keys[:, None] >> shifts) & np.uint64(0xFFFF)).astype(np.float32) / 0xFFFF  # (n, 3)
    factor = torch.from_numpy(1 + jitter * (2 * uniform - 1)).to(patches.device)  # (n, 3)
    return turned.clamp_(min=1 / 255).pow_(factor[:, :, None, None])
