"""Lesion detection by the rule of CAMELYON16.

Ehteshami Bejnordi et al., JAMA 2017, supplement; the challenge's evaluation script. The truth is a mask at a downsample
of 32. Tumour closer than 75 µm is one lesion. Lesions with a major axis below 275 µm are isolated tumour cells (ITC),
which count neither as found nor as missed. Sensitivity is pooled over the lesions of all slides; false positives are
averaged over all slides, also those without any detection.

Shapes: D detections of a slide, L lesions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.classification import CONFIDENCE, RESAMPLES, SEED, Floats
from wsi_ips.geometry import Point, Scale

JOIN_UM = 75.0  # tumour closer than this is one lesion
ITC_UM = 275.0  # a shorter major axis makes isolated tumour cells: 200 µm, and what joining adds on both sides
PEAK_RADIUS_UM = 187.0  # half the side of the box around a peak in which no other peak is picked
TARGETS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per slide at which sensitivity is averaged
MASK_DOWNSAMPLE = 32  # level-0 pixels per pixel of the lesion masks: level 5 of CAMELYON16
LEGACY_MPP = 0.243  # µm per level-0 pixel that the challenge's script assumes for every slide


@dataclass(frozen=True)
class Lesions:
    """Lesions of one slide."""

    labels: NDArray[np.int32]  # (rows, columns): number of the lesion, 0 where there is none
    itc: frozenset[int]  # numbers of the lesions that are isolated tumour cells
    downsample: float  # level-0 pixels per pixel of ``labels``

    @property
    def counted(self) -> list[int]:
        """Numbers of the lesions that count."""
        return [number for number in range(1, int(self.labels.max(initial=0)) + 1) if number not in self.itc]


@dataclass(frozen=True)
class Detections:
    """Points that a model calls tumour on one slide."""

    x_px0: Floats  # (D,) level-0 pixels
    y_px0: Floats
    score: Floats  # higher means more certain, shape (D,)


@dataclass(frozen=True)
class Matched:
    """Detections of one slide, matched to its lesions; small, unlike the mask."""

    false: Floats  # scores of the false positives
    best: Floats  # highest score within each lesion that counts, -inf where it was missed, shape (L,)
    detections: int = 0  # number of all detections
    outside: int = 0  # number of those off the slide, which are false positives too


@dataclass(frozen=True)
class Froc:
    """Sensitivity against false positives per slide."""

    # mean per slide at each threshold, from the highest threshold down, starting at 0; shape (thresholds + 1,)
    false_positives: Floats
    sensitivity: Floats  # share of the lesions that count, at the same thresholds
    score: float  # mean sensitivity at :data:`TARGETS`
    lesions: int  # number of lesions that count
    slides: int
    interval: tuple[float, float] | None = None  # 95 % interval of ``score``; None where it was not computed

    def at(self, target: float) -> float:
        """Return the sensitivity at the first point with this many false positives per slide, else at the last."""
        reached = np.flatnonzero(self.false_positives >= target)
        return float(self.sensitivity[reached[0] if len(reached) else -1])


def find_lesions(mask: NDArray[np.bool_], *, mpp: float, downsample: float) -> Lesions:
    """Return the lesions of a tumour mask, shape (rows, columns), of ``mpp`` µm and ``downsample`` px0 per pixel."""
    if not mask.any():  # a distance transform without any zero would make a phantom lesion
        return Lesions(np.zeros(mask.shape, np.int32), frozenset(), downsample)
    near = ndimage.distance_transform_edt(~mask) < JOIN_UM / 2 / mpp
    labels = measure.label(ndimage.binary_fill_holes(near), connectivity=2)
    shapes = measure.regionprops(labels)
    itc = frozenset(int(shape.label) for shape in shapes if shape.axis_major_length < ITC_UM / mpp)
    return Lesions(labels.astype(np.int32), itc, downsample)


def match_detections(detections: Detections, lesions: Lesions) -> Matched:
    """Match the detections of a slide to its lesions.

    A detection within a lesion finds it; the lesion takes the highest score within it. A detection outside all lesions,
    or off the slide, is a false positive. Detections within isolated tumour cells are neither.
    """
    if not all(np.isfinite(values).all() for values in (detections.x_px0, detections.y_px0, detections.score)):
        raise EvaluationError("a detection has no finite score or position; positions are level-0 pixels")
    column, row = np.floor(np.stack([detections.x_px0, detections.y_px0]) / lesions.downsample)
    rows, columns = lesions.labels.shape
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    hit = np.zeros(len(inside), np.int32)  # number of the lesion that each detection lies in, (D,)
    hit[inside] = lesions.labels[row[inside].astype(int), column[inside].astype(int)]
    best = [detections.score[hit == n].max(initial=-np.inf) for n in lesions.counted]
    outside = int((~inside).sum())
    return Matched(detections.score[hit == 0], np.array(best, np.float64), len(inside), outside)


def froc(slides: Sequence[Matched]) -> Froc:
    """Compute the free-response ROC of all slides, including those without tumour or without detections."""
    if not slides:
        raise EvaluationError("no slide: sensitivity needs annotated lesions")
    wrong, found = np.concatenate([s.false for s in slides]), np.concatenate([s.best for s in slides])
    if not len(found):
        raise EvaluationError(
            f"none of {len(slides)} slides has a lesion that counts; annotate lesions of 200 µm or more"
        )
    thresholds = np.unique(np.concatenate([wrong, found[np.isfinite(found)]]))[::-1]
    per_slide = np.concatenate([[0.0], _at_least(wrong, thresholds) / len(slides)])
    sensitivity = np.concatenate([[0.0], _at_least(found, thresholds) / len(found)])
    curve = Froc(per_slide, sensitivity, 0.0, len(found), len(slides))
    score = float(np.mean([curve.at(target) for target in TARGETS]))
    return replace(curve, score=score)


def froc_interval(slides: Sequence[Matched], *, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Compute the interval of the score of :func:`froc`: a percentile bootstrap over slides.

    Slides with and without lesions are drawn separately, and the lesions of a slide together, since they are not
    independent. Where every resample has the same score, the interval has no width and means nothing.
    """
    froc(slides)  # raises where there is nothing to measure
    wrong, found = np.concatenate([s.false for s in slides]), np.concatenate([s.best for s in slides])
    owner = np.repeat(np.arange(len(slides)), [len(s.false) for s in slides])  # slide of each false positive
    of_slide = np.repeat(np.arange(len(slides)), [len(s.best) for s in slides])  # slide of each lesion
    order = np.argsort(-wrong, kind="stable")
    wrong, owner = wrong[order], owner[order]
    has = np.array([len(s.best) > 0 for s in slides])
    rng, drawn = np.random.default_rng(SEED), np.zeros(resamples)
    for number in range(resamples):
        weights = np.zeros(len(slides))  # how often each slide is drawn
        for members in (np.flatnonzero(has), np.flatnonzero(~has)):
            if len(members):
                weights[members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)))
        per_slide = weights[owner].cumsum() / len(slides)  # false positives from the highest score down
        places = np.searchsorted(per_slide, TARGETS)
        thresholds = np.append(wrong, -np.inf)[places]  # target never reached: all lesions found so far count
        reached = (found >= thresholds[:, None]) & np.isfinite(found)  # (targets, lesions)
        drawn[number] = (reached @ weights[of_slide] / weights[of_slide].sum()).mean()
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return low, high


def froc_with_interval(slides: Sequence[Matched], notes: list[str]) -> Froc | None:
    """Compute the FROC with its interval; None where no lesion counts, with the reason added to ``notes``.

    An interval of zero width would be read as certainty, so it is left out.
    """
    try:
        curve, (low, high) = froc(slides), froc_interval(slides)
    except EvaluationError as error:
        notes.append(f"no FROC: {error}")
        return None
    return replace(curve, interval=(low, high) if low < high else None)


def peak_detections(
    values: NDArray[np.floating], *, origin_px0: Point, cell_px0: Scale, mpp: Scale, least: float = 0.5
) -> Detections:
    """Pick the peaks of a tile map that are at least ``least``, highest first, one within a box around each peak.

    ``values`` has shape (rows, columns), NaN where there is no tile; ``origin_px0`` is its top-left corner.
    """
    reach_x = round(PEAK_RADIUS_UM / (cell_px0.x * mpp.x))
    reach_y = round(PEAK_RADIUS_UM / (cell_px0.y * mpp.y))
    rows, columns = np.nonzero(np.nan_to_num(values, nan=-np.inf) >= least)
    order = np.argsort(-values[rows, columns], kind="stable")
    free = np.ones(values.shape, bool)
    picked = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if free[row, column]:
            picked.append((row, column))
            free[max(0, row - reach_y) : row + reach_y + 1, max(0, column - reach_x) : column + reach_x + 1] = False
    row, column = np.array(picked, int).reshape(-1, 2).T
    return _placed(row, column, values[row, column], origin_px0, cell_px0)


def component_detections(
    values: NDArray[np.floating], *, origin_px0: Point, cell_px0: Scale, least: float = 0.5
) -> Detections:
    """Return the highest cell (the first of ties) of each connected part of a tile map at or above ``least``."""
    scores = np.nan_to_num(values, nan=-np.inf)
    labels, _ = ndimage.label(scores >= least, structure=np.ones((3, 3)))
    rows, columns = np.nonzero(labels)
    order = np.argsort(-scores[rows, columns], kind="stable")
    _, first = np.unique(labels[rows, columns][order], return_index=True)
    row, column = rows[order][first], columns[order][first]
    return _placed(row, column, values[row, column], origin_px0, cell_px0)


def _placed(
    row: NDArray[np.intp], column: NDArray[np.intp], score: NDArray[np.floating], origin: Point, cell: Scale
) -> Detections:
    """Place detections in the middle of their cells."""
    x = np.asarray(origin.x + (column + 0.5) * cell.x, np.float64)
    y = np.asarray(origin.y + (row + 0.5) * cell.y, np.float64)
    return Detections(x, y, np.asarray(score, np.float64))


def _at_least(scores: Floats, thresholds: Floats) -> Floats:
    """Count the scores at or above each threshold."""
    return np.asarray(len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left"), np.float64)
