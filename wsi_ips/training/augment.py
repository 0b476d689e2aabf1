"""Augmentation of tiles on the device, the same in the scan and in the gradient pass.

The change to a patch depends only on (seed, epoch, slide, tile), never on its place in a chunk, so a tile that won
the scan is learned from exactly the pixels that won. torchvision's transforms draw one set of numbers per call, so each
patch would need its own calls; here a chunk is changed at once, with different numbers for each patch. Colour is two
linear maps per patch, one of optical density (stains) and one of intensity.

Shapes: n patches of h x w pixels.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import AugmentSection

# Optical density of haematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston, 2001)
HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])

GREY = np.array([0.299, 0.587, 0.114])  # luma of red, green and blue (ITU-R BT.601), as in torchvision (0.2989 there)

DARKEST = 1 / 255
STAINS, COLOURS, CROP = 1, 2, 3  # streams of random numbers of a tile; the key itself is the first
Floats = NDArray[np.float64]


def tile_keys(*, seed: int, epoch: int, slide_id: str, tiles: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return one well-mixed 64-bit number per tile, shape (n,)."""
    base = np.random.SeedSequence([abs(seed), epoch, zlib.crc32(slide_id.encode())])
    state = base.generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        return _mix(state + (tiles.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def augment(patches: Tensor, keys: NDArray[np.uint64], strengths: AugmentSection) -> Tensor:
    """Return patches, float in 0-1, (n, 3, h, w) with h = w, turned, restained and recoloured by :func:`tile_keys`.

    HED: the optical density is unmixed into haematoxylin, eosin and DAB, each of which is multiplied and shifted, and
    mixed again (Tellez et al., 2018; natural logarithm).
    """
    out = _turned(patches, keys) if strengths.turns else patches.clone(memory_format=torch.preserve_format)
    if strengths.hed:
        matrix, shift = stain_map(keys, strengths)
        density = out.clamp(min=DARKEST).log_().neg_()
        mixed = _mapped(density, matrix).add_(torch.from_numpy(shift).to(out)[:, :, None, None])
        out = mixed.neg_().exp_().clamp_(max=1)
    if strengths.brightness or strengths.saturation:
        out = _mapped(out, colour_map(keys, strengths)).clamp_(0, 1)
    return out


def stain_map(keys: NDArray[np.uint64], strengths: AugmentSection) -> tuple[Floats, Floats]:
    """Return the change of a tile's optical density, ``density @ matrix + shift``: (n, 3, 3) and (n, 3)."""
    spread = strengths.hed * (2 * uniform_numbers(keys, STAINS, 6) - 1)  # (n, 6)
    scale, shift = 1 + spread[:, :3], spread[:, 3:]
    return np.linalg.inv(HED) @ (scale[:, :, None] * HED), (shift[:, None, :] @ HED)[:, 0]


def colour_map(keys: NDArray[np.uint64], strengths: AugmentSection) -> Floats:
    """Return saturation and brightness of each tile as ``colour @ matrix``, (n, 3, 3)."""
    uniform = 2 * uniform_numbers(keys, COLOURS, 3) - 1  # (n, 3); the one between is not used
    brightness, saturation = 1 + strengths.brightness * uniform[:, 0], 1 + strengths.saturation * uniform[:, 2]
    grey = np.outer(GREY, np.ones(3))  # colour @ grey is its luma, three times
    saturated = saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * grey
    return np.asarray(saturated * brightness[:, None, None])


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finaliser of SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def uniform_numbers(keys: NDArray[np.uint64], stream: int, count: int) -> Floats:
    """Return numbers in [0, 1) for each tile, shape (n, count), different in each stream."""
    counter = np.arange(count, dtype=np.uint64) + np.uint64(stream << 32)
    with np.errstate(over="ignore"):
        mixed = _mix(keys[:, None] + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def _turned(patches: Tensor, keys: NDArray[np.uint64]) -> Tensor:
    turned = torch.empty_like(patches)
    code = (keys & np.uint64(7)).astype(np.int64)  # 4 turns x 2 mirrors
    for value in np.unique(code):
        rows = torch.from_numpy(np.flatnonzero(code == value)).to(patches.device)
        part = torch.rot90(patches[rows], int(value) & 3, (2, 3))
        turned[rows] = part.flip(3) if value & 4 else part
    return turned


def _mapped(patches: Tensor, matrix: Floats) -> Tensor:
    """Multiply each pixel, a row vector, by its patch's matrix; (n, 3, h, w), memory stays channels last."""
    n, _, h, w = patches.shape
    rows = patches.permute(0, 2, 3, 1).reshape(n, h * w, 3)  # a view where memory is channels last
    return torch.bmm(rows, torch.from_numpy(matrix).to(patches)).view(n, h, w, 3).permute(0, 3, 1, 2)
