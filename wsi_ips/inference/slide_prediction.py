"""Prediction: one pass over the pixels of a slide gives its label and the scores of all its tiles."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from wsi_ips.errors import ScoresError
from wsi_ips.inference.slide_scores import SlideScores
from wsi_ips.model.encoder import Encode
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.scan_backends import SCAN_BACKENDS, ScanCheck
from wsi_ips.model.selection import selection_score
from wsi_ips.scanning import ChunkLimit, ScanOptions, kept_embeddings, plain_patches, scan_slides
from wsi_ips.tiles.stream import SlideTiles, read_tiles

CALIBRATION_TILES, CHECKED_TILES = 64, 128
"""Tiles of a slide that a scan backend is calibrated on, and others that are scored both ways."""

LEAST_TILES_CALIBRATED = 4 * (CALIBRATION_TILES + CHECKED_TILES)
"""On smaller slides, calibration and check would take longer than they save."""

COMPARED_AT_A_TIME = 16


def predict_slide(net: IpsNet, tiles: SlideTiles, options: ScanOptions, *, fingerprint: str = "") -> SlideScores:
    """Score all tiles of a slide and classify it from the best M.

    Memory grows with the number of tiles only by N·(T·H + C) floats of scores.

    Parameters
    ----------
    net
        The network, on its device; switched to evaluation mode.
    tiles
        The slide's tiles at slot 0; at least one.
    options
        How the tiles are scanned. A calibrated scan backend is used for slides of at least
        :data:`LEAST_TILES_CALIBRATED` tiles, and only where its scores are close to those in float32.
    fingerprint
        Stored with the scores.

    Raises
    ------
    ScoresError
        A score or probability is not finite.
    """
    began = time.perf_counter()
    net.eval()
    prepare = plain_patches(next(net.parameters()).device)
    limit = options.limit or ChunkLimit(options.compute.chunk_size)
    options, check = _calibrated(net, tiles, replace(options, limit=limit, with_probability=True))
    (selection,) = selections = scan_slides(net, [tiles], prepare, options)
    embeddings, mask = kept_embeddings(net, [tiles], selections, prepare, chunk_size=limit.patches)  # (1, K, D)
    with torch.inference_mode():
        logits = net(embeddings, mask)[0]  # (C,)
    assert selection.probability is not None
    if not (torch.isfinite(logits).all() and np.isfinite(selection.probability).all()):
        raise ScoresError(
            f"slide {tiles.slide_id}: the model's probabilities are not finite; it has diverged: train again with a "
            "lower `training.learning_rate`, or give another checkpoint"
        )
    probability = net.probabilities(logits).cpu().split([task.width for task in net.tasks])  # (C_t,) per task
    return SlideScores(
        slide_id=tiles.slide_id,
        attention_logits=selection.logits,
        tile_probability=selection.probability,
        kept=selection.tiles.astype(np.int32),
        kept_embeddings=embeddings[0].float().cpu().numpy(),
        tasks=net.tasks,
        probabilities=tuple(tuple(part.tolist()) for part in probability),
        seconds=round(time.perf_counter() - began, 3),
        fingerprint=fingerprint,
        check=check,
    )


def _calibrated(net: IpsNet, tiles: SlideTiles, options: ScanOptions) -> tuple[ScanOptions, ScanCheck | None]:
    """Calibrate the scan backend on some tiles of the slide, check it on others, and use it where it is close."""
    backend, count = SCAN_BACKENDS[options.compute.scan_backend], len(tiles.index)
    if not backend.is_calibrated or count < LEAST_TILES_CALIBRATED:
        return options, None
    drawn = np.random.default_rng(count).permutation(count)[: CALIBRATION_TILES + CHECKED_TILES].astype(np.int32)
    calibrating, checking = (
        to_float(torch.from_numpy(read_tiles(tiles.only(np.sort(part)))))
        for part in (drawn[:CALIBRATION_TILES], drawn[CALIBRATION_TILES:])
    )
    encode = backend.load()(net.encoder, calibrating)
    check = compare_scores(net, encode, checking, memory_size=options.memory_size)
    return (replace(options, encode=encode) if check.holds else options), check


@torch.inference_mode()
def compare_scores(net: IpsNet, encode: Encode, patches: Tensor, *, memory_size: int) -> ScanCheck:
    """Score patches with the encoder and with another way to run it, and compare.

    Parameters
    ----------
    net
        In evaluation mode; positions of tiles are ignored.
    encode
        The other way to run its encoder.
    patches
        Float in 0-1, shape (n, 3, h, w), n > 1.
    memory_size
        Tiles kept per slide (M); at most a quarter of the patches are compared as kept.
    """
    exact = torch.cat([net.encoder(part) for part in patches.split(COMPARED_AT_A_TIME)])  # (n, D)
    near = encode(patches)  # (n, D)
    scores = [selection_score(net.pooling.logits(e).float().numpy()) for e in (exact, near)]  # (n,) each
    kept = max(1, min(memory_size, len(patches) // 4))
    best = [set(np.argsort(-score, kind="stable")[:kept].tolist()) for score in scores]
    ranked = all(np.ptp(score) > 0 for score in scores)
    return ScanCheck(
        tiles=len(patches),
        error=float((near - exact).norm() / exact.norm()),
        correlation=float(spearmanr(*scores).statistic) if ranked else 1.0,
        kept=kept,
        overlap=len(best[0] & best[1]) / kept,
    )
