"""The slide's probabilities once more, from nothing but what is stored of its tiles.

Shapes: N tiles, K kept, D width of an embedding, T queries, H heads, C classes of all tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from wsi_ips.errors import ScoresError
from wsi_ips.inference.scores import SlideScores
from wsi_ips.model.net import IpsNet


@dataclass(frozen=True)
class Recomputed:
    """How far the stored table agrees with itself and with the network.

    Attributes
    ----------
    probabilities
        Of the slide, per task, pooled from the stored embeddings.
    off
        Largest difference from the stored ones.
    logits_off
        Largest difference of the kept tiles' attention logits, stored by the scan, from those of their embeddings; a
        scan in bf16 or int8 rounds.
    kept_are_best
        Whether the kept tiles are those that the network's rule takes from the stored logits of all tiles.
    """

    probabilities: tuple[tuple[float, ...], ...]
    off: float
    logits_off: float
    kept_are_best: bool


def recomputed_probability(scores: SlideScores, net: IpsNet) -> tuple[tuple[float, ...], ...]:
    """Class probabilities of the slide, per task, pooled anew from the embeddings of its kept tiles.

    Raises
    ------
    ScoresError
        The table holds no embeddings, or those of another network.
    """
    return recompute(scores, net).probabilities


@torch.inference_mode()
def recompute(scores: SlideScores, net: IpsNet) -> Recomputed:
    """Pool, score and select anew; see :class:`Recomputed`.

    Parameters
    ----------
    scores
        As stored.
    net
        The network that made them; switched to evaluation mode.

    Raises
    ------
    ScoresError
        As for :func:`recomputed_probability`.
    """
    if scores.kept_embeddings is None:
        raise ScoresError(
            f"scores of slide {scores.slide_id}: from before embeddings were stored; delete them and run `wsi-ips "
            "predict`"
        )
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
        kept_are_best=np.array_equal(net.rule(scores.attention_logits, len(scores.kept)), scores.kept),
    )
