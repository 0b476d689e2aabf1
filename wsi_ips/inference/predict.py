"""Prediction: one pass over the pixels of a slide gives its label and the scores of all its tiles."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import numpy as np
import torch

from wsi_ips.config import ComputeSection
from wsi_ips.inference.scores import SlideScores
from wsi_ips.model.checkpoint import ModelCard
from wsi_ips.model.net import IpsNet
from wsi_ips.scanning import plain_patches, scan_slides, slide_probabilities
from wsi_ips.tiles import SlideTiles


def predict_slide(
    net: IpsNet,
    card: ModelCard,
    tiles: SlideTiles,
    *,
    compute: ComputeSection,
    device: torch.device,
    fingerprint: str,
    on_tiles: Callable[[int], None] = lambda _: None,
) -> SlideScores:
    """Score all tiles of a slide and classify it from the best M.

    Memory does not grow with the number of tiles, but for N·(T·H + C) floats of scores.

    Parameters
    ----------
    net, card
        A loaded checkpoint; ``net`` is on ``device``.
    tiles
        The slide's tiles at slot 0; at least one.
    compute
        Chunk size and reading threads.
    fingerprint
        Stored with the scores.
    on_tiles
        Called with the number of tiles after each chunk.
    """
    began = time.perf_counter()
    prepare = plain_patches(device)
    selections = scan_slides(
        net,
        [tiles],
        memory_size=card.memory_size,
        compute=compute,
        prepare=prepare,
        with_probability=True,
        on_tiles=on_tiles,
    )
    probability = slide_probabilities(net, [tiles], selections, prepare, chunk_size=compute.chunk_size)[0]  # (C,)
    selection = selections[0]
    return SlideScores(
        slide_id=tiles.slide_id,
        attention_logits=selection.logits,
        tile_probability=cast("np.ndarray[tuple[int, int], np.dtype[np.float32]]", selection.probability),
        kept=selection.tiles.astype(np.int32),
        classes=card.classes,
        probability=tuple(float(p) for p in probability.cpu()),
        seconds=round(time.perf_counter() - began, 3),
        fingerprint=fingerprint,
    )
