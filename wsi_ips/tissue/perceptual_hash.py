"""Perceptual hash of a slide in 256 bits ("look"), to find slides that look alike under different names.

The hash holds the signs of the lowest frequencies (DCT) of the stained part of the thumbnail, scaled to 32 x 32. It
hardly changes with stain, scale, compression and margin of glass. Turned and mirrored slides are found by turning and
mirroring the bits: mirroring changes the signs of the odd frequencies, transposing swaps the axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from skimage.filters import threshold_otsu

SIDE, FREQUENCIES = 32, 16
LONGEST_PX = 512
SMALLEST_PX = 16  # a smaller part, or one of less contrast than the next constant, cannot be recognised
LEAST_CONTRAST = 8.0
# Share of bits by which two looks of one slide may differ. With another stain, scale and margin, turned and mirrored,
# 96 % of trials stayed below this; different slides differed by at least 0.35, and by 0.22 where slides were composed
# on the outline of the same node (benchmarks/looks.py, DECISIONS D79).
LARGEST_DISTANCE = 0.2
ROWS_AT_A_TIME = 512


class Alike(NamedTuple):
    """Two slides that look alike, and the share of bits that differ."""

    first: str
    second: str
    distance: float


def look_of(thumbnail: NDArray[np.uint8]) -> str:
    """Return the hash of a thumbnail, 64 hexadecimal digits; empty where nothing can be recognised."""
    image = Image.fromarray(thumbnail)
    image.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.BOX)
    stain = 255 - np.asarray(image).min(axis=2)  # (height, width); glass is near 0
    if np.ptp(stain) < LEAST_CONTRAST:
        return ""
    stained = stain > threshold_otsu(stain)
    x, y = (_extent(stained.sum(axis=axis)) for axis in (0, 1))
    part = stain[y, x]
    if min(part.shape) < SMALLEST_PX or part.std() < LEAST_CONTRAST:
        return ""
    small = Image.fromarray(part).convert("F").resize((SIDE, SIDE), Image.Resampling.BOX)
    frequencies = dctn(np.asarray(small), norm="ortho")[:FREQUENCIES, :FREQUENCIES]
    frequencies[0, 0] = 0  # the mean says how dark the stain is, not what the slide looks like
    return np.packbits(frequencies > 0).tobytes().hex()


def look_alikes(looks: Mapping[str, str], *, largest_distance: float = LARGEST_DISTANCE) -> Iterator[Alike]:
    """Yield pairs of slides that look alike, also turned or mirrored, from the hash of each slide_id."""
    names = [name for name, look in looks.items() if look]
    if len(names) < 2:
        return
    bits = np.unpackbits(np.frombuffer(bytes.fromhex("".join(looks[name] for name in names)), np.uint8))
    signs = bits.reshape(-1, FREQUENCIES, FREQUENCIES).astype(np.float32) * 2 - 1  # (N, 16, 16), -1 or 1
    flat = signs.reshape(len(names), -1)
    for start in range(0, len(names), ROWS_AT_A_TIME):
        rows = signs[start : start + ROWS_AT_A_TIME]
        agreement = np.max([turned.reshape(len(rows), -1) @ flat.T for turned in _turned(rows)], axis=0)
        distance = (1 - agreement / flat.shape[1]) / 2  # (rows, N)
        for i, j in zip(*np.nonzero(distance <= largest_distance), strict=True):
            if j > start + i:
                yield Alike(names[start + i], names[j], round(float(distance[i, j]), 3))


def _extent(counts: NDArray[np.intp]) -> slice:
    """Return the range of rows or columns with stain; single specks do not count."""
    found = np.flatnonzero(counts > 0.01 * counts.max())
    return slice(int(found[0]), int(found[-1]) + 1)


def _turned(signs: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield the eight right-angle turns and mirror images; ``signs`` has shape (N, 16, 16)."""
    odd = np.where(np.arange(FREQUENCIES) % 2, np.float32(-1), np.float32(1))
    for image in (signs, signs.swapaxes(1, 2)):
        for across in (1, odd):
            for down in (1, np.reshape(odd, (-1, 1))):
                yield image * across * down
