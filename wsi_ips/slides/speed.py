"""Measure how fast this machine decodes JPEG tiles."""

from __future__ import annotations

import time
from functools import lru_cache

import numpy as np

from wsi_ips.geometry import Size
from wsi_ips.slides.aperio import TILE_PX, encode_jpeg
from wsi_ips.slides.histology import make_texture
from wsi_ips.slides.jpeg_tiles import decode

ABSORPTION = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
"""Absorption of haematoxylin and eosin in red, green, blue (Ruifrok and Johnston 2001)."""


@lru_cache(1)
def sample_tile() -> bytes:
    """Return a JPEG tile of 256 x 256 px with H&E-like texture, quality 80."""
    concentration = make_texture("stroma", np.random.default_rng(0), mpp=0.5, variants=1)[0]  # (256, 256, 2)
    light = np.exp(-np.asarray(concentration, np.float64) @ ABSORPTION)
    return encode_jpeg(np.asarray(np.clip(light * 255, 0, 255), np.uint8))


def decoding_rate_mpx_s(seconds: float = 0.2) -> float:
    """Return the megapixels that one thread decodes per second of CPU time, measured over ``seconds``."""
    stream, out = sample_tile(), np.empty((TILE_PX, TILE_PX, 3), np.uint8)
    size = Size(TILE_PX, TILE_PX)
    decode(stream, size, factor=1, out=out)  # the first call loads the decoder
    began, tiles = time.thread_time(), 0
    while (spent := time.thread_time() - began) < seconds or not tiles:
        decode(stream, size, factor=1, out=out)
        tiles += 1
    return tiles * TILE_PX**2 / 1e6 / spent
