"""Per-tile augmentation on the device, which the scan and the gradient pass repeat exactly.

What happens to a patch depends only on (seed, epoch, slide, tile), never on its place in a chunk, so a
tile that won the scan is learned from the very pixels that won. torchvision's transforms draw one set of numbers per
call, so each patch would need calls of its own; here a chunk is changed at once, with numbers of each patch. Colour is
two linear maps per patch, one of optical density (stains) and one of intensity.

Shapes: n patches of h x w pixels.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import AugmentSection

HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin, eosin and DAB in red, green and blue (Ruifrok and Johnston, 2001)."""

GREY = np.array([0.299, 0.587, 0.114])
"""Luma of red, green and blue (ITU-R BT.601), as in torchvision (0.2989 there)."""

DARKEST = 1 / 255
STAINS, COLOURS = 1, 2
"""Streams of random numbers of a tile; the key itself is the first."""

Floats = NDArray[np.float64]


def tile_keys(*, seed: int, epoch: int, slide_id: str, tiles: NDArray[np.integer]) -> NDArray[np.uint64]:
    """One well-mixed 64-bit number per tile, shape (n,)."""
    base = np.random.SeedSequence([abs(seed), epoch, zlib.crc32(slide_id.encode())])
    state = base.generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        return _mix(state + (tiles.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def augment(patches: Tensor, keys: NDArray[np.uint64], strengths: AugmentSection) -> Tensor:
    """Turn, flip, restain and recolour patches.

    Density: optical density ``-log(I)`` of each channel is multiplied by a factor, which by the law of Beer and Lambert
    is a change of stain concentration. HED: the density is unmixed into haematoxylin, eosin and DAB, each of which is
    multiplied and shifted, and mixed again (Tellez et al., 2018; natural logarithm).

    Parameters
    ----------
    patches
        Float in 0-1, shape (n, 3, h, w) with h = w.
    keys
        From :func:`tile_keys`, shape (n,).
    strengths
        What is changed, and how much at most.

    Returns
    -------
    torch.Tensor
        New tensor in 0-1, shape (n, 3, h, w).
    """
    out = _turned(patches, keys) if strengths.turns else patches.clone(memory_format=torch.preserve_format)
    if strengths.hed:
        out = _restained(out, *stain_map(keys, strengths))
    elif strengths.density:
        factor = torch.from_numpy(_density_factor(keys, strengths.density)).to(patches)  # (n, 3)
        out = out.clamp_(min=DARKEST).pow_(factor[:, :, None, None])  # I ** factor
    if strengths.brightness or strengths.contrast or strengths.saturation or strengths.hue:
        out = _recoloured(out, keys, strengths)
    return out


def stain_map(keys: NDArray[np.uint64], strengths: AugmentSection) -> tuple[Floats, Floats]:
    """What happens to the optical density of each tile: ``density @ matrix + shift``, shapes (n, 3, 3) and (n, 3)."""
    spread = strengths.hed * (2 * _uniform(keys, STAINS, 6) - 1)  # (n, 6)
    scale, shift = 1 + spread[:, :3], spread[:, 3:]
    density = _density_factor(keys, strengths.density).astype(np.float64)[:, None, :]  # (n, 1, 3)
    matrix = np.linalg.inv(HED) @ (scale[:, :, None] * HED)
    return matrix * density, (shift[:, None, :] @ HED * density)[:, 0]


def colour_map(keys: NDArray[np.uint64], strengths: AugmentSection) -> tuple[Floats, Floats]:
    """Hue, saturation and brightness of each tile as ``colour @ matrix``, (n, 3, 3), and its contrast, (n,)."""
    uniform = 2 * _uniform(keys, COLOURS, 4) - 1  # (n, 4)
    brightness = 1 + strengths.brightness * uniform[:, 0]
    saturation = 1 + strengths.saturation * uniform[:, 2]
    turn = 2 * np.pi * strengths.hue * uniform[:, 3]
    grey = np.outer(GREY, np.ones(3))  # colour @ grey is its luma, three times
    saturated = saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * grey
    return _hue_rotation(turn) @ saturated * brightness[:, None, None], 1 + strengths.contrast * uniform[:, 1]


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def _uniform(keys: NDArray[np.uint64], stream: int, count: int) -> Floats:
    """Numbers in [0, 1) of each tile, shape (n, count), other ones in each stream."""
    counter = np.arange(count, dtype=np.uint64) + np.uint64(stream << 32)
    with np.errstate(over="ignore"):
        mixed = _mix(keys[:, None] + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def _density_factor(keys: NDArray[np.uint64], strength: float) -> NDArray[np.float32]:
    """Factor of each channel's optical density, shape (n, 3)."""
    shifts = np.array([8, 24, 40], np.uint64)
    uniform = ((keys[:, None] >> shifts) & np.uint64(0xFFFF)).astype(np.float32) / 0xFFFF
    return np.asarray(1 + strength * (2 * uniform - 1), np.float32)


def _hue_rotation(turn: Floats) -> Floats:
    """Rotation of colours about the grey axis by an angle, shape (n, 3, 3); grey stays as it is."""
    cos, sin = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
    cross = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) / np.sqrt(3)
    return np.asarray(cos * np.eye(3) + (1 - cos) / 3 + sin * cross)


def _turned(patches: Tensor, keys: NDArray[np.uint64]) -> Tensor:
    """Each patch in one of its eight positions."""
    turned = torch.empty_like(patches)
    code = (keys & np.uint64(7)).astype(np.int64)  # 4 turns x 2 mirrors
    for value in np.unique(code):
        rows = torch.from_numpy(np.flatnonzero(code == value)).to(patches.device)
        part = torch.rot90(patches[rows], int(value) & 3, (2, 3))
        turned[rows] = part.flip(3) if value & 4 else part
    return turned


def _restained(patches: Tensor, matrix: Floats, shift: Floats) -> Tensor:
    density = patches.clamp(min=DARKEST).log_().neg_()
    mixed = _mapped(density, matrix).add_(_column(shift, patches))
    return mixed.neg_().exp_().clamp_(max=1)


def _recoloured(patches: Tensor, keys: NDArray[np.uint64], strengths: AugmentSection) -> Tensor:
    matrix, contrast = colour_map(keys, strengths)
    out = _mapped(patches, matrix)
    if strengths.contrast:
        grey = (out.mean((2, 3)) * torch.from_numpy(GREY).to(out)).sum(1)  # (n,)
        factor = torch.from_numpy(contrast).to(out)
        out = out.mul_(factor[:, None, None, None]).add_(((1 - factor) * grey)[:, None, None, None])
    return out.clamp_(0, 1)


def _mapped(patches: Tensor, matrix: Floats) -> Tensor:
    """Each pixel as a row vector times its patch's matrix, (n, 3, h, w); memory stays channels last."""
    n, _, h, w = patches.shape
    rows = patches.permute(0, 2, 3, 1).reshape(n, h * w, 3)  # a view where memory is channels last
    return torch.bmm(rows, torch.from_numpy(matrix).to(patches)).view(n, h, w, 3).permute(0, 3, 1, 2)


def _column(values: Floats, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)[:, :, None, None]
