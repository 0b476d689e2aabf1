"""How well a score per tile finds annotated tumour: numbers in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from wsi_ips.errors import EvaluationError

TUMOUR_TILE = 0.5
"""A tile is tumour where more than this share of it is annotated."""


@dataclass(frozen=True)
class TileFigures:
    """Localisation over the tiles of a cohort.

    Attributes
    ----------
    auc, pr_auc
        Of the score against "tumour tile", over all tiles of all slides together.
    tumour_tiles, tiles
        Tumour tiles and all tiles.
    """

    auc: float
    pr_auc: float
    tumour_tiles: int
    tiles: int


def tile_figures(tumour_fraction: NDArray[np.floating], score: NDArray[np.floating]) -> TileFigures:
    """Tile AUC and PR-AUC; no tile is left out, those on the edge of a lesion count too.

    Parameters
    ----------
    tumour_fraction
        Share of annotated tumour per tile, 0-1, shape (N,).
    score
        Higher means more suspicious, shape (N,).

    Raises
    ------
    EvaluationError
        No tumour tile, or tumour tiles only; a number that is not finite; different lengths.
    """
    _check(tumour_fraction, score)
    truth = tumour_fraction > TUMOUR_TILE
    if not truth.any() or truth.all():
        raise EvaluationError(f"{int(truth.sum())} of {len(truth)} tiles are tumour: a tile AUC needs both kinds")
    return TileFigures(
        auc=float(metrics.roc_auc_score(truth, score)),
        pr_auc=float(metrics.average_precision_score(truth, score)),
        tumour_tiles=int(truth.sum()),
        tiles=len(truth),
    )


def pointing_hit(tumour_fraction: NDArray[np.floating], score: NDArray[np.floating]) -> bool:
    """Pointing game: whether the tile of the highest score (the first of equals) is a tumour tile.

    A slide without a tumour tile is a miss; leave slides without tumour out.

    Raises
    ------
    EvaluationError
        No tile; a number that is not finite; different lengths.
    """
    _check(tumour_fraction, score)
    return bool(tumour_fraction[int(np.argmax(score))] > TUMOUR_TILE)


def effective_tiles(attention: NDArray[np.floating]) -> float:
    """Number of tiles that attention is spread over: exp of its entropy; 1 to N.

    Parameters
    ----------
    attention
        Of all tiles of a slide, sums to 1, shape (N,).

    Raises
    ------
    EvaluationError
        No tile, a negative or not finite number, or a sum that is not 1.
    """
    if not len(attention) or not np.isfinite(attention).all() or (attention < 0).any():
        raise EvaluationError("attention must be finite and not negative, for at least one tile; predict again")
    if abs(float(attention.sum()) - 1) > 1e-3:
        raise EvaluationError(f"attention sums to {float(attention.sum()):.4g}, not to 1; predict again")
    held = attention[attention > 0]
    return float(np.exp(-(held * np.log(held)).sum()))


def false_alarm_mm2(
    score: NDArray[np.floating], tissue_fraction: NDArray[np.floating], *, tile_mm2: float, threshold: float
) -> float:
    """Tissue area of a negative slide that a threshold calls tumour, mm².

    Parameters
    ----------
    score, tissue_fraction
        Per tile, shape (N,).
    tile_mm2
        Area of one stride cell, mm².
    threshold
        Scores from here on are called tumour.

    Raises
    ------
    EvaluationError
        No tile; a number that is not finite; different lengths.
    """
    _check(tissue_fraction, score)
    return float(tissue_fraction[score >= threshold].sum() * tile_mm2)


def _check(fraction: NDArray[np.floating], score: NDArray[np.floating]) -> None:
    if fraction.shape != score.shape or fraction.ndim != 1 or not len(score):
        raise EvaluationError(f"{fraction.shape} fractions and {score.shape} scores: one of each per tile is needed")
    if not np.isfinite(score).all():
        raise EvaluationError(f"{int((~np.isfinite(score)).sum())} tile scores are not finite; predict again")
    if not np.isfinite(fraction).all():
        raise EvaluationError(f"{int((~np.isfinite(fraction)).sum())} tile fractions are not finite; tile again")
