"""Which maps a slide has, and the score of each tile on them; no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import HeatmapSection
from wsi_ips.inference import SlideScores
from wsi_ips.results import attention_rank
from wsi_ips.results.overlay import Kind

ALWAYS: tuple[Kind, ...] = ("probability", "attention")


def map_kinds(section: HeatmapSection) -> tuple[Kind, ...]:
    """Maps of a slide, that of recipe key `heatmap.score` first; probability and attention are always among them."""
    return (section.score, *(kind for kind in ALWAYS if kind != section.score))


def map_scores(scores: SlideScores, kind: Kind) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Tiles that a map shows, ascending, shape (n,), and their scores, 0-1, shape (n,)."""
    every = np.arange(len(scores.attention_logits))
    match kind:
        case "probability":
            return every, np.asarray(scores.positive_probability, np.float32)
        case "attention":
            return every, attention_rank(scores.attention)
        case _:
            raise ValueError(f"no map `{kind}`")
