"""Ugly slides made in tests: not square, four different corners, mpp_x != mpp_y, odd sizes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

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


TILE_WIDTH, TILE_HEIGHT = 128, 112


def write_jpeg_pyramid(
    path: Path,
    levels: list[np.ndarray],
    *,
    components: str = "ycbcr",
    shared_tables: bool = False,
    quality: int = 100,
    description: str | None = None,
    missing: tuple[int, ...] = (),
    mpp: tuple[float, float] = MPP,
    padded: bool = False,
    software: str | None = None,
) -> Path:
    """A pyramid of JPEG tiles that are not square, of YCbCr 4:2:0 or RGB components.

    ``shared_tables`` leaves the tables out of the streams and puts them into tag 347; ``missing`` tiles of level 0 have
    no bytes, as where a scanner left glass out; ``padded`` makes each directory as large as its tiles.
    """
    rgb = components == "rgb"
    with tifffile.TiffWriter(path) as tif:
        for number, pixels in enumerate(levels):
            streams = [encode(tile, rgb=rgb, quality=quality) for tile in jpeg_tiles(pixels)]
            tables = split_tables(streams[0])[0] if shared_tables else None
            if shared_tables:
                streams = [split_tables(stream)[1] for stream in streams]
            if number == 0:
                streams = [b"" if n in missing else stream for n, stream in enumerate(streams)]
            height, width = pixels.shape[:2]
            if padded:
                height, width = -(-height // TILE_HEIGHT) * TILE_HEIGHT, -(-width // TILE_WIDTH) * TILE_WIDTH
            factor = levels[0].shape[1] / pixels.shape[1]
            tif.write(
                iter(streams),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(TILE_HEIGHT, TILE_WIDTH),
                photometric="rgb" if rgb else "ycbcr",
                compression="jpeg",
                compressionargs={"outcolorspace": "rgb"} if rgb else None,
                jpegtables=tables,
                subsampling=None if rgb else (2, 2),
                subfiletype=min(number, 1),
                description=description if number == 0 else None,
                resolution=(1e4 / mpp[0] / factor, 1e4 / mpp[1] / factor),
                resolutionunit="CENTIMETER",
                software=software,
                metadata=None,
            )
    return path


def jpeg_tiles(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Tiles in the order of a TIFF; those at the edges are filled up with their last row and column."""
    height, width = pixels.shape[:2]
    filled = np.pad(pixels, [(0, -height % TILE_HEIGHT), (0, -width % TILE_WIDTH), (0, 0)], "edge")
    for y in range(0, height, TILE_HEIGHT):
        for x in range(0, width, TILE_WIDTH):
            yield filled[y : y + TILE_HEIGHT, x : x + TILE_WIDTH]


def encode(pixels: np.ndarray, *, rgb: bool, quality: int) -> bytes:
    """One complete JPEG."""
    buffer = io.BytesIO()
    if rgb:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, keep_rgb=True)
    else:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def split_tables(stream: bytes) -> tuple[bytes, bytes]:
    """A JPEG as its tables alone and the rest: both begin with SOI and end with EOI."""
    tables, rest, at = b"", b"", 2
    while stream[at : at + 2] != b"\xff\xda":  # start of scan
        length = 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        segment = stream[at : at + length]
        if segment[1] in (0xDB, 0xC4):  # quantisation, Huffman
            tables += segment
        elif segment[1] not in (0xE0, 0xEE):  # JFIF and Adobe are left out, as Aperio does
            rest += segment
        at += length
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + stream[at:]


def textured_pyramid(seed: int = 0) -> list[np.ndarray]:
    """Blobs of several sizes on the gradient: pixels that differ from place to place as tissue does."""
    rng = np.random.default_rng(seed)
    noise = np.zeros((HEIGHT, WIDTH, 3))
    for step in (3, 11, 37):
        coarse = rng.normal(0, 22, (HEIGHT // step + 2, WIDTH // step + 2, 3))
        noise += coarse.repeat(step, 0).repeat(step, 1)[:HEIGHT, :WIDTH]
    level0 = np.clip(gradient_level(WIDTH, HEIGHT) * 0.5 + 100 + noise, 0, 255).astype(np.uint8)
    sizes = [(WIDTH // 2, HEIGHT // 2), (WIDTH // 4, HEIGHT // 4)]
    coarser = [np.asarray(Image.fromarray(level0).resize(size, Image.Resampling.BOX)) for size in sizes]
    return [level0, *coarser]
