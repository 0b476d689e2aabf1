"""Where the score maps of a run are right: lesions, tiles, false alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from wsi_ips.annotations import read_annotation, region_mask
from wsi_ips.errors import AnnotationError, EvaluationError
from wsi_ips.evaluation import (
    Froc,
    Lesions,
    Localisation,
    Matched,
    SizeRecall,
    TileFigures,
    component_detections,
    effective_tiles,
    false_alarm_mm2,
    find_lesions,
    froc,
    froc_interval,
    match_detections,
    peak_detections,
    pointing_hit,
    tile_figures,
)
from wsi_ips.evaluation.localisation import TUMOUR_TILE
from wsi_ips.geometry import Box, Point, Scale, Size
from wsi_ips.inference import SlideScores
from wsi_ips.manifest import SlideRecord
from wsi_ips.pipeline.run import Run
from wsi_ips.results import Raster, tile_raster
from wsi_ips.tiles import TileIndex

MASK_DOWNSAMPLE = 32
"""Level-0 pixels per pixel of the lesion masks: level 5 of CAMELYON16."""
LEGACY_MPP = 0.243
"""µm per level-0 pixel that the challenge's script takes for every slide."""
LEAST_PEAK = 0.05
"""Peaks below it would change no figure but those at very many false positives."""
SIZES = ("ITC", "micro", "macro")


@dataclass
class _Found:
    """What the slides came to so far; figures are made of it at the end."""

    peaks: list[Matched] = field(default_factory=list)
    components: list[Matched] = field(default_factory=list)
    fraction: list[NDArray[np.floating]] = field(default_factory=list)
    probability: list[NDArray[np.floating]] = field(default_factory=list)
    attention: list[NDArray[np.floating]] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    pointed: list[bool] = field(default_factory=list)
    selected: list[bool] = field(default_factory=list)
    alarms: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)


def localise(
    run: Run,
    scores: Mapping[str, SlideScores],
    records: Sequence[SlideRecord],
    notes: list[str],
    *,
    threshold: float,
    sizes: Mapping[str, str],
    mpp: float | None = None,
) -> Localisation | None:
    """Figures of the slides whose tumour is known: annotated ones, and those without tumour.

    Parameters
    ----------
    run, scores, records
        Predicted slides and their scores.
    notes
        What is left out is told there.
    threshold
        Tiles from this probability on are called tumour: such a tile alone would make its slide positive.
    sizes
        Size class of the largest lesion, by slide.
    mpp
        µm per level-0 pixel for the rule of CAMELYON16; None takes each slide's own.
    """
    found, left_out = _Found(), list[str]()
    for record in records:
        is_negative = run.recipe.labels.tasks[0].is_negative(run.truth(record))
        if record.annotation is None and not is_negative:
            left_out.append(record.slide_id)
            continue
        try:
            lesions = lesions_of(run, record, mpp)
        except (AnnotationError, OSError) as error:
            notes.append(f"slide {record.slide_id} is in no figure of lesions or tiles: {error}")
            continue
        size = sizes.get(record.slide_id, "")
        _add(found, scores[record.slide_id], run.index(record), lesions, is_negative, size, threshold)
    if left_out:
        shown = ", ".join(left_out[:5]) + (f" and {len(left_out) - 5} more" if len(left_out) > 5 else "")
        notes.append(f"{len(left_out)} slides without annotation are in no figure of lesions or tiles: {shown}")
    if not found.peaks:
        notes.append("no localisation: no slide is annotated or known to be without tumour")
        return None
    probability, attention = _tile_figures(found, notes)
    return Localisation(
        lesions_by_peaks=froc_with_interval(found.peaks, notes),
        lesions_by_components=froc_with_interval(found.components, []),
        tile_probability=probability,
        tile_attention=attention,
        pointing=_mean(found.pointed),
        selection_recall=_mean(found.selected),
        by_size=_by_size(found),
        false_alarm_mm2=_mean(found.alarms),
        effective_tiles=_mean(found.spread),
        tumour_slides=len(found.pointed),
        other_slides=len(found.alarms),
    )


def _add(
    found: _Found,
    entry: SlideScores,
    index: TileIndex,
    lesions: Lesions,
    is_negative: bool,
    size: str,
    threshold: float,
) -> None:
    raster = score_raster(entry, index)
    origin, cell = raster.origin_px0, raster.cell_px0
    picked = peak_detections(raster.values, origin_px0=origin, cell_px0=cell, mpp=index.mpp, least=LEAST_PEAK)
    parts = component_detections(raster.values, origin_px0=origin, cell_px0=cell, least=threshold)
    found.peaks.append(match_detections(picked, lesions))
    found.components.append(match_detections(parts, lesions))
    fraction = index.tumour_fraction if index.tumour_fraction is not None else np.zeros(len(index), np.float32)
    found.fraction.append(fraction)
    found.probability.append(entry.positive_probability)
    found.attention.append(entry.attention * len(entry.attention))
    found.spread.append(effective_tiles(entry.attention))
    if (fraction > TUMOUR_TILE).any():
        found.sizes.append(size)
        found.pointed.append(pointing_hit(fraction, entry.positive_probability))
        found.selected.append(bool((fraction[entry.kept] > TUMOUR_TILE).any()))
    elif is_negative:
        tile_mm2 = index.stride_px0.x * index.mpp.x * index.stride_px0.y * index.mpp.y / 1e6
        found.alarms.append(
            false_alarm_mm2(entry.positive_probability, index.tissue_fraction, tile_mm2=tile_mm2, threshold=threshold)
        )


def score_raster(entry: SlideScores, index: TileIndex) -> Raster:
    """The map of the positive class, a value per grid cell."""
    return tile_raster(
        index.x,
        index.y,
        entry.positive_probability,
        bounds=index.grid,
        stride_px0=index.stride_px0,
        footprint_px0=index.plan.footprint_px0,
    )


def _by_size(found: _Found) -> tuple[SizeRecall, ...]:
    rows = list(zip(found.sizes, found.selected, found.pointed, strict=True))
    return tuple(
        SizeRecall(name, len(here), sum(r[1] for r in here), sum(r[2] for r in here))
        for name in SIZES
        if (here := [row for row in rows if row[0] == name])
    )


def _tile_figures(found: _Found, notes: list[str]) -> tuple[TileFigures | None, TileFigures | None]:
    truth = np.concatenate(found.fraction)
    try:
        return (
            tile_figures(truth, np.concatenate(found.probability)),
            tile_figures(truth, np.concatenate(found.attention)),
        )
    except EvaluationError as error:
        notes.append(f"no tile AUC: {error}")
        return None, None


def froc_with_interval(slides: Sequence[Matched], notes: list[str]) -> Froc | None:
    """FROC and the interval of its score; None where no lesion counts, which is told in ``notes``.

    An interval without width would pass for certainty: it is left out.
    """
    try:
        curve, (low, high) = froc(slides), froc_interval(slides)
    except EvaluationError as error:
        notes.append(f"no FROC: {error}")
        return None
    return replace(curve, interval=(low, high) if low < high else None)


def lesions_of(run: Run, record: SlideRecord, mpp: float | None = None) -> Lesions:
    """Lesions of a tiled slide at the challenge's downsample; none where it is not annotated."""
    index = run.index(record)
    return read_lesions(record, index.size_px0, index.bounds, Scale(mpp, mpp) if mpp else index.mpp)


def read_lesions(record: SlideRecord, size: Size, bounds: Box, mpp: Scale) -> Lesions:
    """Lesions of a slide whose size and scale are known.

    Raises
    ------
    AnnotationError
        The annotation cannot be understood.
    """
    if record.annotation is None:
        shape = (-(-size.height // MASK_DOWNSAMPLE), -(-size.width // MASK_DOWNSAMPLE))
        return Lesions(np.zeros(shape, np.int32), frozenset(), MASK_DOWNSAMPLE)
    regions = read_annotation(record.annotation, bounds_origin=Point(bounds.x, bounds.y))
    mask = region_mask(regions.tumour, size, downsample=MASK_DOWNSAMPLE)
    return find_lesions(mask, mpp=(mpp.x + mpp.y) / 2 * MASK_DOWNSAMPLE, downsample=MASK_DOWNSAMPLE)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
