"""Prediction: one pass over the pixels of a slide gives its label and the scores of all its tiles."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import ComputeSection
from wsi_ips.errors import ScoresError
from wsi_ips.inference.scores import SlideScores
from wsi_ips.model.checkpoint import ModelCard
from wsi_ips.model.int8 import Int8Encoder, Int8Exporter, compare
from wsi_ips.model.int8_check import Int8Check
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.tasks import positive_margin
from wsi_ips.scanning import ChunkLimit, kept_embeddings, plain_patches, scan_slides
from wsi_ips.tiles import SlideTiles, read_tiles

CALIBRATED, CHECKED = 64, 128
"""Tiles of a slide that give the ranges of the integers, and others that are scored both ways."""

LEAST_TILES_INT8 = 4 * (CALIBRATED + CHECKED)
"""Below it calibration and check take longer than they save."""


def predict_slide(
    net: IpsNet,
    card: ModelCard,
    tiles: SlideTiles,
    *,
    compute: ComputeSection,
    device: torch.device,
    fingerprint: str,
    on_tiles: Callable[[int], None] = lambda _: None,
    int8: Int8Exporter | None = None,
    limit: ChunkLimit | None = None,
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
    int8
        Scores the tiles in 8-bit integers; not for slides of fewer than :data:`LEAST_TILES_INT8` tiles, nor for those
        on whose own tiles the two ways differ too much.
    limit
        Of the patches scored at once, shared by slides; comes down where the device's memory runs out.
    """
    began = time.perf_counter()
    prepare = plain_patches(device)
    net.eval()
    limit = limit or ChunkLimit(compute.chunk_size)
    encode, check = (None, None) if int8 is None else _int8_scan(net, int8, tiles, card.memory_size)
    selections = scan_slides(
        net,
        [tiles],
        memory_size=card.memory_size,
        compute=compute,
        prepare=prepare,
        with_probability=True,
        on_tiles=on_tiles,
        encode=encode,
        limit=limit,
    )
    embeddings, mask = kept_embeddings(net, [tiles], selections, prepare, chunk_size=limit.patches)  # (1, K, D)
    logits, falls = _decision(net, embeddings, mask)
    probability = net.probabilities(logits)  # (C,)
    selection = selections[0]
    assert selection.probability is not None
    if not (torch.isfinite(logits).all() and np.isfinite(selection.probability).all()):
        raise ScoresError(
            f"slide {tiles.slide_id}: the model's probabilities are not finite; it has diverged: train again with a "
            "lower `training.learning_rate`, or give another checkpoint"
        )
    return SlideScores(
        slide_id=tiles.slide_id,
        attention_logits=selection.logits,
        tile_probability=cast("np.ndarray[tuple[int, int], np.dtype[np.float32]]", selection.probability),
        kept=selection.tiles.astype(np.int32),
        tasks=card.tasks,
        probabilities=tuple(tuple(part.tolist()) for part in probability.cpu().split([t.width for t in card.tasks])),
        seconds=round(time.perf_counter() - began, 3),
        fingerprint=fingerprint,
        int8=check,
        kept_embeddings=embeddings[0].float().cpu().numpy(),
        left_out=falls,
    )


@torch.inference_mode()
def _decision(net: IpsNet, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, NDArray[np.float32]]:
    """Class logits of one slide, shape (C,), and how far its margin falls without each kept tile, shape (K,).

    Without tiles there is no slide: where one tile is kept, the second is empty.
    """
    logits = net(embeddings, mask)[0]
    if embeddings.shape[1] == 1:
        return logits, np.empty(0, np.float32)
    task = net.tasks[0]
    without = net.without_each(embeddings[0])[:, : task.width]  # (K, C_0)
    falls = positive_margin(logits[: task.width], task) - positive_margin(without, task)
    return logits, falls.float().cpu().numpy()


def _int8_scan(
    net: IpsNet, int8: Int8Exporter, tiles: SlideTiles, memory_size: int
) -> tuple[Int8Encoder | None, Int8Check | None]:
    """The encoder in int8, calibrated on some tiles of the slide, and what others say of it; None where unfit."""
    count = len(tiles.index)
    if count < LEAST_TILES_INT8:
        return None, None
    drawn = np.random.default_rng(count).permutation(count)[: CALIBRATED + CHECKED].astype(np.int32)
    calibrating, checking = (
        to_float(torch.from_numpy(read_tiles(tiles.only(np.sort(part)))))
        for part in (drawn[:CALIBRATED], drawn[CALIBRATED:])
    )
    encode = int8.calibrated(calibrating)
    check = compare(net, encode, checking, memory_size=memory_size)
    return (encode if check.holds else None), check
