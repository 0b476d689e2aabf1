"""Ugly slides made in tests: not square, four different corners, mpp_x != mpp_y, odd sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

WIDTH, HEIGHT = 1031, 773
MPP = (0.25, 0.26)


def gradient_level(width: int, height: int, step_x: float = 1.0, step_y: float = 1.0) -> np.ndarray:
    """Pixels that say where they are: red grows by level-0 x / 8, green by level-0 y / 8, blue by both."""
    x = (np.arange(width) + 0.5) * step_x
    y = (np.arange(height) + 0.5) * step_y
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.minimum(255, x / 8)[None]
    pixels[..., 1] = np.minimum(255, y / 8)[:, None]
    pixels[..., 2] = np.minimum(255, (x[None] + y[:, None]) / 10)
    return pixels


def gradient_pyramid() -> list[np.ndarray]:
    """Three levels with downsamples that are no integers (odd sizes, floor division)."""
    sizes = [(WIDTH, HEIGHT), (WIDTH // 2, HEIGHT // 2), (WIDTH // 4, HEIGHT // 4)]
    return [gradient_level(w, h, WIDTH / w, HEIGHT / h) for w, h in sizes]


def write_pyramid(path: Path, levels: list[np.ndarray], mpp: tuple[float, float] = MPP) -> Path:
    """A tiled, lossless pyramidal TIFF with its scale in the resolution tags."""
    with tifffile.TiffWriter(path) as tif:
        for number, pixels in enumerate(levels):
            factor = levels[0].shape[1] / pixels.shape[1]
            tif.write(
                pixels,
                tile=(128, 128),
                photometric="rgb",
                compression="deflate",
                subfiletype=min(number, 1),
                resolution=(1e4 / mpp[0] / factor, 1e4 / mpp[1] / factor),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path
