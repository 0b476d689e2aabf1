"""Prediction: one pass over the pixels of a slide gives its label and the scores of all its tiles.

:func:`recompute` checks stored predictions against what is stored of the tiles. Shapes: N tiles, K kept, D width of an
embedding, T queries, H heads, C classes of all tasks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from wsi_ips.errors import ScoresError
from wsi_ips.inference.slide_scores import SlideScores
from wsi_ips.model.encoder import Encode
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.scan_backends import SCAN_BACKENDS, ScanCheck
from wsi_ips.model.selection import best_tiles, selection_score
from wsi_ips.scanning import ChunkLimit, ScanOptions, kept_embeddings, plain_patches, scan_slides
from wsi_ips.tiles.stream import SlideTiles, read_tiles

# Tiles of a slide that a scan backend is calibrated on, and others that are scored both ways
CALIBRATION_TILES, CHECKED_TILES = 64, 128

# On smaller slides, calibration and check would take longer than they save
LEAST_TILES_CALIBRATED = 4 * (CALIBRATION_TILES + CHECKED_TILES)

COMPARED_AT_A_TIME = 16


def predict_slide(net: IpsNet, tiles: SlideTiles, options: ScanOptions, *, fingerprint: str = "") -> SlideScores:
    """Score all tiles of a slide (slot 0, at least one) and classify it from the best M.

    Memory grows with the number of tiles only by N·(T·H + C) floats of scores. A calibrated scan backend is used for
    slides of at least :data:`LEAST_TILES_CALIBRATED` tiles, and only where its scores are close to those in float32.
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
    """Score patches, (n, 3, h, w), with the encoder and with another way to run it, without positions; compare."""
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


@dataclass(frozen=True)
class Recomputed:
    """Agreement of a stored table with itself and with the network."""

    probabilities: tuple[tuple[float, ...], ...]  # of the slide, per task, pooled from the stored embeddings
    off: float  # largest difference from the stored probabilities
    # Largest difference of the kept tiles' stored attention logits from those of their embeddings; a scan in bf16 or
    # int8 rounds
    logits_off: float
    kept_are_best: bool  # whether the kept tiles are the best ones by the stored logits of all tiles


@torch.inference_mode()
def recompute(scores: SlideScores, net: IpsNet) -> Recomputed:
    """Pool, score and select again from a stored table with the network that made it."""
    if scores.kept_embeddings.shape != (len(scores.kept), net.encoder.width):
        raise ScoresError(
            f"scores of slide {scores.slide_id}: embeddings of shape {scores.kept_embeddings.shape} for "
            f"{len(scores.kept)} tiles and a network of width {net.encoder.width}; run `wsi-ips predict` again"
        )
    net.eval()
    device = next(net.parameters()).device
    embeddings = torch.from_numpy(scores.kept_embeddings).to(device)  # (K, D)
    mask = torch.ones(1, len(embeddings), dtype=torch.bool, device=device)
    found = net.probabilities(net(embeddings[None], mask))[0].cpu()  # (C,)
    stored = np.concatenate([np.array(part) for part in scores.probabilities])
    logits = net.pooling.logits(embeddings).cpu().numpy()  # (K, T, H)
    return Recomputed(
        probabilities=tuple(tuple(part.tolist()) for part in found.split([t.width for t in net.tasks])),
        off=float(np.abs(found.numpy() - stored).max()),
        logits_off=float(np.abs(logits - scores.attention_logits[scores.kept]).max()),
        kept_are_best=np.array_equal(best_tiles(scores.attention_logits, len(scores.kept)), scores.kept),
    )
