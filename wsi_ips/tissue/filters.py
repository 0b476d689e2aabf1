"""Filters on thumbnails, by adding and OR-ing shifted copies. Pure.

Squares of a few pixels are enough for a thumbnail. On 1250 x 1250 px and one core, the mean of 3 x 3 takes 4 ms (scipy
20) and closing by 5 x 5 takes 4 ms (scikit-image with a disk 90), which decides how long a slide takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Number = TypeVar("Number", bound=np.generic)

EIGHT_CONNECTED = np.ones((3, 3), bool)


def box_mean(values: Bytes, side: int) -> Bytes:
    """Return the rounded mean over squares of an odd side of at most 15, edges repeated."""
    total = over_squares(np.pad(values, side // 2, mode="edge").astype(np.uint16), side, np.add)
    return np.asarray((total + side * side // 2) // (side * side), np.uint8)


def extremes(planes: Sequence[NDArray[Number]]) -> tuple[NDArray[Number], NDArray[Number]]:
    """Return the least and the greatest of red, green and blue at each pixel."""
    red, green, blue = planes
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def roughness(values: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return nine times the difference of each pixel to the mean of 3 x 3 around it; values of at most 1 800."""
    return np.abs(9 * values - over_squares(np.pad(values, 1, mode="edge"), 3, np.add))


def box_share(mask: Bools, side: int) -> NDArray[np.float32]:
    """Return the share of True (0-1) in squares around each pixel, whose side is exact to an eighth."""
    block = max(1, side // 8)
    image = Image.fromarray(mask.view(np.uint8) * np.uint8(255)).reduce(block)
    blurred = np.asarray(image.filter(ImageFilter.BoxBlur(side / block / 2)), np.float32) / 255
    height, width = mask.shape
    wide = blurred.repeat(block, axis=0)[:height].repeat(block, axis=1)[:, :width]
    return np.asarray(wide, np.float32)


def dilated(mask: Bools, radius: int) -> Bools:
    """Return True within a square of side ``2 * radius + 1`` around each True pixel."""
    if radius <= 0:
        return mask
    return over_squares(np.pad(mask, radius), 2 * radius + 1, np.logical_or)


def local_minimum(values: Bytes, radius: int) -> Bytes:
    """Return the minimum within a square of side ``2 * radius + 1``, edges repeated."""
    return over_squares(np.pad(values, radius, mode="edge"), 2 * radius + 1, np.minimum)


def closed(mask: Bools, radius: int) -> Bools:
    """Close gaps of up to ``2 * radius`` pixels; the edge of the picture is not a gap."""
    if radius <= 0:
        return mask
    wide = dilated(np.pad(mask, radius), radius)
    return ~dilated(~wide, radius)[radius:-radius, radius:-radius]


def without_small(mask: Bools, smallest_px: int) -> Bools:
    """Drop 8-connected pieces of fewer than ``smallest_px`` pixels."""
    if smallest_px <= 1 or not mask.any():
        return mask
    labels, count = ndimage.label(mask, structure=EIGHT_CONNECTED)
    keep = np.bincount(labels.ravel(), minlength=count + 1) >= smallest_px
    keep[0] = False
    return np.asarray(keep[labels])


def over_squares(values: NDArray[Number], side: int, combine: np.ufunc) -> NDArray[Number]:
    """Combine the values of each square, along one axis and then the other; the border is lost."""
    for axis in (0, 1):
        length = values.shape[axis] - side + 1
        shifted = [values[k : k + length] if axis == 0 else values[:, k : k + length] for k in range(side)]
        values = reduce(lambda a, b: combine(a, b, out=a), shifted[1:], shifted[0].copy())
    return values
