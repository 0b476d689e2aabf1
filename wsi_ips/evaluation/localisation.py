"""Localisation: how well a score map finds tumour (lesions, tiles, false alarms). Shapes: N tiles of a slide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special
from sklearn import metrics

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.calibration import LEAST_PROBABILITY
from wsi_ips.evaluation.froc import (
    Froc,
    Lesions,
    Matched,
    component_detections,
    froc_with_interval,
    match_detections,
    peak_detections,
)
from wsi_ips.geometry import Point, Scale
from wsi_ips.labels import Task

TUMOUR_TILE = 0.5  # a tile is tumour where more than this share of it is annotated
LEAST_PEAK = 0.05  # lower peaks would matter only at very many false positives
SIZES = ("ITC", "micro", "macro")  # size classes of lesions, smallest first
Shares = NDArray[np.floating]


@dataclass(frozen=True)
class TileFigures:
    """AUC and average precision of a score for tumour tiles, the tiles of all slides pooled."""

    auc: float
    pr_auc: float
    tumour_tiles: int
    tiles: int


@dataclass(frozen=True)
class SizeRecall:
    """Tumour slides by the size of their largest lesion."""

    size: str  # one of SIZES
    slides: int
    selected: int  # slides with a tumour tile among the selected tiles
    pointed: int  # slides whose highest tile is tumour


@dataclass(frozen=True)
class Localisation:
    """Localisation metrics over the slides whose tumour is known; None where they cannot be computed."""

    lesions_by_peaks: Froc | None = None  # FROC of CAMELYON16, with detections picked in two ways
    lesions_by_components: Froc | None = None
    lesions_given: Froc | None = None  # the same for detections from another tool
    tile_probability: TileFigures | None = None
    tile_attention: TileFigures | None = None  # attention is multiplied by the number of tiles of its slide
    pointing: float | None = None  # share of tumour slides whose highest tile is tumour
    selection_recall: float | None = None  # share of tumour slides with a tumour tile among the selected tiles
    by_size: tuple[SizeRecall, ...] = ()
    false_alarm_mm2: float | None = None  # mean tissue area called tumour on slides without tumour
    effective_tiles: float | None = None  # number of tiles over which attention is spread, mean over all slides here
    tumour_slides: int = 0  # slides with a tumour tile
    other_slides: int = 0  # slides without tumour


@dataclass(frozen=True)
class SlideMap:
    """Scores of one slide whose tumour is known."""

    values: Shares  # probability on the tile grid, (rows, columns), NaN where there is no tile
    origin_px0: Point
    cell_px0: Scale
    mpp: Scale  # µm per level-0 pixel
    probability: Shares  # per tile, (N,), like the next three
    attention: Shares  # sums to 1
    tissue_fraction: Shares
    tumour_fraction: Shares
    kept: NDArray[np.integer]  # ids of the selected tiles, (K,)
    lesions: Lesions
    is_negative: bool = False  # whether the slide is known to hold no tumour
    largest_lesion: str = ""  # size class of the largest lesion; empty where unknown


@dataclass(frozen=True)
class SlideLocalisation:
    """Localisation on one slide; small, unlike :class:`SlideMap`."""

    peaks: Matched  # detections picked in two ways, matched to the lesions
    components: Matched
    tumour_fraction: Shares  # per tile, (N,), like the next two
    probability: Shares
    attention: Shares  # multiplied by N
    effective_tiles: float
    largest_lesion: str = ""
    pointed: bool | None = None  # whether the highest tile is tumour; None for slides without a tumour tile
    selected: bool | None = None  # whether a tumour tile is among the selected ones; None likewise
    false_alarm_mm2: float | None = None  # tissue area called tumour on a slide without tumour; None for others


def localise_slide(slide: SlideMap, threshold: float) -> SlideLocalisation:
    """Measure the map of one slide; tiles at or above the threshold are called tumour."""
    origin, cell = slide.origin_px0, slide.cell_px0
    peaks = peak_detections(slide.values, origin_px0=origin, cell_px0=cell, mpp=slide.mpp, least=LEAST_PEAK)
    components = component_detections(slide.values, origin_px0=origin, cell_px0=cell, least=threshold)
    is_tumour = slide.tumour_fraction > TUMOUR_TILE  # (N,)
    has_tumour = bool(is_tumour.any())
    alarms = None
    if slide.is_negative and not has_tumour:
        tile_mm2 = cell.x * slide.mpp.x * cell.y * slide.mpp.y / 1e6
        alarms = false_alarm_mm2(slide.probability, slide.tissue_fraction, tile_mm2=tile_mm2, threshold=threshold)
    return SlideLocalisation(
        match_detections(peaks, slide.lesions),
        match_detections(components, slide.lesions),
        slide.tumour_fraction,
        slide.probability,
        slide.attention * len(slide.attention),
        effective_tiles(slide.attention),
        slide.largest_lesion,
        pointing_hit(slide.tumour_fraction, slide.probability) if has_tumour else None,
        bool(is_tumour[slide.kept].any()) if has_tumour else None,
        alarms,
    )


def localise(
    slides: Sequence[SlideLocalisation], notes: list[str], *, unmapped: Sequence[Matched] = ()
) -> Localisation | None:
    """Combine the slides of a cohort; what cannot be computed is added to ``notes``.

    ``unmapped`` are the lesions of slides that have no map; the lesion figures count them, as missed.
    """
    if not slides:
        notes.append("no localisation: no slide is annotated or known to be without tumour")
        return None
    by_peaks = froc_with_interval([*(s.peaks for s in slides), *unmapped], notes)
    truth = np.concatenate([s.tumour_fraction for s in slides])
    probability, attention = None, None
    try:
        probability = tile_figures(truth, np.concatenate([s.probability for s in slides]))
        attention = tile_figures(truth, np.concatenate([s.attention for s in slides]))
    except EvaluationError as error:
        notes.append(f"no tile AUC: {error}")
    tumour = [s for s in slides if s.pointed is not None]
    alarms = [s.false_alarm_mm2 for s in slides if s.false_alarm_mm2 is not None]
    return Localisation(
        lesions_by_peaks=by_peaks,
        lesions_by_components=froc_with_interval([*(s.components for s in slides), *unmapped], []),
        tile_probability=probability,
        tile_attention=attention,
        pointing=_mean(bool(s.pointed) for s in tumour),
        selection_recall=_mean(bool(s.selected) for s in tumour),
        by_size=tuple(
            SizeRecall(name, len(here), sum(bool(s.selected) for s in here), sum(bool(s.pointed) for s in here))
            for name in SIZES
            if (here := [s for s in tumour if s.largest_lesion == name])
        ),
        false_alarm_mm2=_mean(alarms),
        effective_tiles=_mean(s.effective_tiles for s in slides),
        tumour_slides=len(tumour),
        other_slides=len(alarms),
    )


def tile_threshold(task: Task, temperature: float, threshold: float) -> float:
    """Return the threshold of slides for tiles, whose probabilities are not calibrated.

    A tile at this threshold has the probability at which a slide of that tile alone would be called positive. A task of
    more than two exclusive classes has no such number; its threshold is returned unchanged.
    """
    if temperature == 1 or (task.kind == "single" and task.width > 2):
        return threshold
    inner = float(np.clip(threshold, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY))
    return float(special.expit(temperature * special.logit(inner)))


def tile_figures(tumour_fraction: Shares, score: Shares) -> TileFigures:
    """Compute tile AUC and average precision of a score over all tiles, also those on the edge of a lesion."""
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


def pointing_hit(tumour_fraction: Shares, score: Shares) -> bool:
    """Return whether the tile of the highest score (the first of ties) is a tumour tile: the pointing game.

    A slide without a tumour tile is a miss; leave slides without tumour out.
    """
    _check(tumour_fraction, score)
    return bool(tumour_fraction[int(np.argmax(score))] > TUMOUR_TILE)


def effective_tiles(attention: Shares) -> float:
    """Return the number of tiles over which attention, which sums to 1, is spread: exp of its entropy, 1 to N."""
    if not len(attention) or not np.isfinite(attention).all() or (attention < 0).any():
        raise EvaluationError("attention must be finite and not negative, for at least one tile; predict again")
    if abs(float(attention.sum()) - 1) > 1e-3:
        raise EvaluationError(f"attention sums to {float(attention.sum()):.4g}, not to 1; predict again")
    held = attention[attention > 0]
    return float(np.exp(-(held * np.log(held)).sum()))


def false_alarm_mm2(score: Shares, tissue_fraction: Shares, *, tile_mm2: float, threshold: float) -> float:
    """Return the tissue area of a negative slide whose tiles reach a threshold."""
    _check(tissue_fraction, score)
    return float(tissue_fraction[score >= threshold].sum() * tile_mm2)


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return float(np.mean(known)) if known else None


def _check(fraction: Shares, score: Shares) -> None:
    if fraction.shape != score.shape or fraction.ndim != 1 or not len(score):
        raise EvaluationError(f"{fraction.shape} fractions and {score.shape} scores: one of each per tile is needed")
    if not np.isfinite(score).all():
        raise EvaluationError(f"{int((~np.isfinite(score)).sum())} tile scores are not finite; predict again")
    if not np.isfinite(fraction).all():
        raise EvaluationError(f"{int((~np.isfinite(fraction)).sum())} tile fractions are not finite; tile again")
