"""Recompute a slide's probabilities from what is stored of its tiles, to check stored predictions.

Shapes: N tiles, K kept, D width of an embedding, T queries, H heads, C classes of all tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from wsi_ips.errors import ScoresError
from wsi_ips.inference.slide_scores import SlideScores
from wsi_ips.model.net import IpsNet
from wsi_ips.model.selection import best_tiles


@dataclass(frozen=True)
class Recomputed:
    """Agreement of a stored table with itself and with the network.

    Attributes
    ----------
    probabilities
        Probabilities of the slide, per task, pooled from the stored embeddings.
    off
        Largest difference from the stored probabilities.
    logits_off
        Largest difference of the kept tiles' stored attention logits from those of their embeddings; a scan in bf16 or
        int8 rounds.
    kept_are_best
        Whether the kept tiles are the best ones by the stored logits of all tiles.
    """

    probabilities: tuple[tuple[float, ...], ...]
    off: float
    logits_off: float
    kept_are_best: bool


@torch.inference_mode()
def recompute(scores: SlideScores, net: IpsNet) -> Recomputed:
    """Pool, score and select again from a stored table.

    Parameters
    ----------
    scores
        The table.
    net
        The network that made it; switched to evaluation mode.

    Raises
    ------
    ScoresError
        The embeddings are those of another network.
    """
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
