"""Large slides with real texture for the benchmark of reading.

Texture: PNG or JPEG images of H&E at the slide's scale, cut at random places; without them, the texture of the
synthetic slides.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.slides.synthetic_textures import TEXTURES, Stain, make_texture

VARIANTS = 400
"""Different tiles in a slide; each is stored again wherever it is shown, as in a real file."""


def texture_images(folder: Path | None) -> list[NDArray[np.uint8]]:
    """Images to cut tiles from."""
    if folder is not None:
        files = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".png", ".jpg", ".jpeg")]
        images = [np.asarray(Image.open(p).convert("RGB")) for p in files if "outlines" not in p.parts]
        return [image for image in images if min(image.shape[:2]) >= 64]
    stain = Stain(1.0, 1.0, ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), (240, 239, 242))
    return [make_texture(name, np.random.default_rng(7), stain) for name in TEXTURES]


def _cut(images: list[NDArray[np.uint8]], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    image = images[rng.integers(len(images))]
    if min(image.shape[:2]) < side:
        image = np.pad(image, [(0, max(0, side - s)) for s in image.shape[:2]] + [(0, 0)], "symmetric")
    y, x = (int(rng.integers(0, s - side + 1)) for s in image.shape[:2])
    return image[y : y + side, x : x + side]


def _encode(pixels: NDArray[np.uint8], *, rgb: bool, quality: int) -> bytes:
    buffer = io.BytesIO()
    options = {"keep_rgb": True} if rgb else {"subsampling": "4:2:0"}
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def write_slide(path: Path, *, side: int, tile: int, rgb: bool, quality: int, mpp: float, folder: Path | None) -> None:
    """A square slide of one level, tiled JPEG, in the form of Aperio."""
    rng = np.random.default_rng(1)
    images = texture_images(folder)
    tiles = [_encode(_cut(images, tile, rng), rgb=rgb, quality=quality) for _ in range(VARIANTS)]

    def streams() -> Iterator[bytes]:
        for _ in range((side // tile) ** 2):
            yield tiles[rng.integers(VARIANTS)]

    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        tif.write(
            streams(),
            shape=(side, side, 3),
            dtype=np.uint8,
            tile=(tile, tile),
            photometric="rgb" if rgb else "ycbcr",
            compression="jpeg",
            compressionargs={"outcolorspace": "rgb"} if rgb else None,
            subsampling=None if rgb else (2, 2),
            description=f"Aperio Image Library\n{side}x{side}|AppMag = 40|MPP = {mpp}",
            metadata=None,
        )


def write_uncompressed(path: Path, *, side: int, tile: int, mpp: float, folder: Path | None) -> None:
    """A slide that the direct path does not take: deflate."""
    rng = np.random.default_rng(2)
    images = texture_images(folder)
    pixels = np.empty((side, side, 3), np.uint8)
    for y in range(0, side, tile):
        for x in range(0, side, tile):
            pixels[y : y + tile, x : x + tile] = _cut(images, tile, rng)
    with tifffile.TiffWriter(path) as tif:
        tif.write(
            pixels,
            tile=(tile, tile),
            photometric="rgb",
            compression="deflate",
            resolution=(1e4 / mpp, 1e4 / mpp),
            resolutionunit="CENTIMETER",
            metadata=None,
        )
