"""Lesion detection by the rule of CAMELYON16: numbers in, numbers out.

Ehteshami Bejnordi et al., JAMA 2017, supplement; the challenge's evaluation script. Truth is a mask at a downsample of
32. Lesions closer than 75 µm are one; those with a major axis below 275 µm are isolated tumour cells (ITC), which count
neither as found nor as missed. Sensitivity is pooled over the lesions of all slides, false positives are averaged over
all slides, also those without any detection.

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
from wsi_ips.geometry import Point, Scale

JOIN_UM = 75.0
"""Tumour closer than this is one lesion."""
ITC_UM = 275.0
"""Lesions whose major axis is shorter are isolated tumour cells: 200 µm, and what the joining adds on both sides."""
PEAK_RADIUS_UM = 187.0
"""Half the side of the box around a peak in which no other is picked."""
TARGETS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per slide at which sensitivity is averaged."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lesions:
    """Lesions of one slide.

    Attributes
    ----------
    labels
        int32, shape (rows, columns): number of the lesion, 0 where there is none.
    itc
        Numbers of those that are isolated tumour cells.
    downsample
        Level-0 pixels per pixel of ``labels``.
    """

    labels: NDArray[np.int32]
    itc: frozenset[int]
    downsample: float

    @property
    def counted(self) -> list[int]:
        """Numbers of the lesions that count."""
        return [number for number in range(1, int(self.labels.max(initial=0)) + 1) if number not in self.itc]


@dataclass(frozen=True)
class Detections:
    """Points a model calls tumour on one slide.

    Attributes
    ----------
    x_px0, y_px0
        Level-0 positions, shape (D,).
    score
        Higher means more certain, shape (D,).
    """

    x_px0: Floats
    y_px0: Floats
    score: Floats


@dataclass(frozen=True)
class Matched:
    """What the detections of one slide came to; small, where the masks of a cohort would not fit into memory.

    Attributes
    ----------
    false
        Scores of the false positives.
    best
        Highest score within each lesion that counts, -inf where it was missed, shape (L,).
    """

    false: Floats
    best: Floats


@dataclass(frozen=True)
class Froc:
    """Sensitivity against false positives per slide.

    Attributes
    ----------
    false_positives
        Per slide, at each threshold from the highest down, starting at 0; shape (thresholds + 1,).
    sensitivity
        Share of the lesions that count, at the same thresholds.
    score
        Mean sensitivity at :data:`TARGETS`.
    lesions, slides
        What it rests on.
    interval
        95 % interval of ``score``, see :func:`froc_interval`; None where it was not asked for.
    """

    false_positives: Floats
    sensitivity: Floats
    score: float
    lesions: int
    slides: int
    interval: tuple[float, float] | None = None

    def at(self, target: float) -> float:
        """Sensitivity at the first point with so many false positives per slide; that of the last where none has."""
        reached = np.flatnonzero(self.false_positives >= target)
        return float(self.sensitivity[reached[0] if len(reached) else -1])


def find_lesions(mask: NDArray[np.bool_], *, mpp: float, downsample: float) -> Lesions:
    """Lesions of a tumour mask.

    Parameters
    ----------
    mask
        Tumour, bool, shape (rows, columns); at a downsample of 32 for figures that compare with published ones.
    mpp
        µm per pixel of the mask.
    downsample
        Level-0 pixels per pixel of the mask.
    """
    if not mask.any():  # a distance transform without any zero would make a lesion of nothing
        return Lesions(np.zeros(mask.shape, np.int32), frozenset(), downsample)
    near = ndimage.distance_transform_edt(~mask) < JOIN_UM / 2 / mpp
    labels = measure.label(ndimage.binary_fill_holes(near), connectivity=2)
    shapes = measure.regionprops(labels)
    itc = frozenset(int(shape.label) for shape in shapes if shape.axis_major_length < ITC_UM / mpp)
    return Lesions(labels.astype(np.int32), itc, downsample)


def match_detections(detections: Detections, lesions: Lesions) -> Matched:
    """Sort the detections of a slide into hits and false positives.

    A detection within a lesion finds it, with the highest score of those within; outside of all it is a false positive.
    Detections within isolated tumour cells are neither.

    Raises
    ------
    EvaluationError
        Detections that are not finite or off their slide.
    """
    hit = _hit(detections, lesions)
    best = [detections.score[hit == n].max(initial=-np.inf) for n in lesions.counted]
    return Matched(detections.score[hit == 0], np.array(best, np.float64))


def froc(slides: Sequence[Matched]) -> Froc:
    """Free-response ROC of a cohort.

    Parameters
    ----------
    slides
        All slides of the cohort, those without tumour and those without detections too.

    Raises
    ------
    EvaluationError
        No slide, or no lesion that counts.
    """
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


def froc_interval(
    slides: Sequence[Matched], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Interval of the score of :func:`froc`: percentile bootstrap over slides, those with lesions and others apart.

    Lesions of a slide are drawn together, for they are not independent. Where every resample has one and the same score
    (all lesions found before any false positive, say) the interval has no width: it says nothing then.

    Parameters
    ----------
    slides
        As for :func:`froc`.
    confidence
        Coverage of the interval.
    resamples, seed
        Of the bootstrap.

    Raises
    ------
    EvaluationError
        As :func:`froc`.
    """
    froc(slides)  # says what cannot be used
    wrong, owner = _joined([s.false for s in slides])
    found, of_slide = _joined([s.best for s in slides])
    order = np.argsort(-wrong, kind="stable")
    wrong, owner = wrong[order], owner[order]
    has = np.array([len(s.best) > 0 for s in slides])
    rng, drawn = np.random.default_rng(seed), np.zeros(resamples)
    for number in range(resamples):
        weights = np.zeros(len(slides))
        for members in (np.flatnonzero(has), np.flatnonzero(~has)):
            if len(members):
                weights[members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)))
        per_slide = weights[owner].cumsum() / len(slides)  # false positives from the highest score down
        places = np.searchsorted(per_slide, TARGETS)
        thresholds = np.append(wrong, -np.inf)[places]  # never so many: whatever was found counts
        reached = (found >= thresholds[:, None]) & np.isfinite(found)  # (targets, lesions)
        drawn[number] = (reached @ weights[of_slide] / weights[of_slide].sum()).mean()
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return low, high


def _at_least(scores: Floats, thresholds: Floats) -> Floats:
    """How many scores reach each threshold."""
    return np.asarray(len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left"), np.float64)


def _joined(parts: Sequence[Floats]) -> tuple[Floats, NDArray[np.intp]]:
    """All numbers, and of which part each is."""
    return np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def peak_detections(
    values: NDArray[np.floating], *, origin_px0: Point, cell_px0: Scale, mpp: Scale, least: float = 0.5
) -> Detections:
    """Peaks of a tile map, highest first; around each a box is left out.

    Parameters
    ----------
    values
        Score per cell, shape (rows, columns); NaN where there is no tile.
    origin_px0, cell_px0
        Place of the map on the slide, level-0 pixels.
    mpp
        µm per level-0 pixel.
    least
        Lower scores are no detections.
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
    """Connected parts of a tile map from a threshold on: a detection each, at its highest cell (the first of equals).

    Parameters
    ----------
    values, origin_px0, cell_px0
        As for :func:`peak_detections`.
    least
        Cells from this score on are tumour.
    """
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
    """Detections in the middle of their cells."""
    x = np.asarray(origin.x + (column + 0.5) * cell.x, np.float64)
    y = np.asarray(origin.y + (row + 0.5) * cell.y, np.float64)
    return Detections(x, y, np.asarray(score, np.float64))


def _hit(detections: Detections, lesions: Lesions) -> NDArray[np.int32]:
    """Number of the lesion each detection lies in, shape (D,)."""
    column = np.floor(detections.x_px0 / lesions.downsample).astype(int)
    row = np.floor(detections.y_px0 / lesions.downsample).astype(int)
    rows, columns = lesions.labels.shape
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns) & np.isfinite(detections.score)
    if not inside.all():
        raise EvaluationError(
            f"{int((~inside).sum())} of {len(inside)} detections are off their slide or have no finite score; "
            "positions are level-0 pixels"
        )
    return np.asarray(lesions.labels[row, column])
