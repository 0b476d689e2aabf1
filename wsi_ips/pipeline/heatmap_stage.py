"""Stage ``heatmap``: draw the score maps of predicted slides over their H&E. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import shapely
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import read_geojson
from wsi_ips.config import HeatmapSection
from wsi_ips.errors import AnnotationError
from wsi_ips.evaluation.calibration import Calibration
from wsi_ips.geometry import Point
from wsi_ips.inference.slide_scores import SlideScores
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.checkpoint_card import read_card
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.slide_predictions import checkpoint_folder, model_calibration, predicted, slide_scores
from wsi_ips.provenance import fingerprint
from wsi_ips.results.overlay import Caption, write_overlay
from wsi_ips.results.slide_heatmaps import SlideHeatmaps, best_tiles, lesion_outlines, view_of
from wsi_ips.tiles import SlideTiles, TileIndex, read_tiles

SCHEMA_VERSION = 3


@dataclass(frozen=True)
class MapSource:
    """A predicted slide to draw or to hand over: its scores, their model, and the fingerprint of what is written."""

    record: SlideRecord
    scores: SlideScores
    model_id: str
    fingerprint: str


def to_draw(run: Run, names: Sequence[str] = ()) -> list[SlideRecord]:
    """Return the predicted slides to draw: the named ones, else those of the recipe's splits or without a split."""
    wanted = (*run.recipe.heatmap.splits, None)
    return [r for r in predicted(run) if (r.slide_id in names if names else r.split in wanted)]


def heatmap_stage(run: Run, names: Sequence[str] = ()) -> int:
    """Draw all slides whose pictures are not up to date and return their number."""
    section, folder, note = run.recipe.heatmap, run.folder, run.progress.note
    model_id, calibration = read_card(checkpoint_folder(run)).model_id, model_calibration(run)
    due = []
    for record in to_draw(run, names):
        scores = slide_scores(run, record, calibration)
        source = MapSource(record, scores, model_id, heatmap_fingerprint(section, scores, calibration))
        pictures = [folder.overlay(record.slide_id, kind) for kind in section.maps]
        if not all(_drawn_from(picture) == source.fingerprint for picture in pictures):
            due.append(source)
    if due:
        with run.progress.stage("heatmaps", len(due), "slides") as advance:
            for source in due:
                draw = partial(_draw, partial(run.tiles, source.record), source, section, folder, note)
                run.states.fence(source.record.slide_id, "heatmap", draw)
                advance(1)
        run.states.save()
    return len(due)


def heatmap_fingerprint(section: HeatmapSection, scores: SlideScores, calibration: Calibration) -> str:
    """Return the fingerprint that up-to-date pictures of a slide have."""
    return fingerprint("heatmap", SCHEMA_VERSION, section, scores.fingerprint, calibration.hash)


def tissue_region(outline: Path, index: TileIndex, note: Callable[[str], None]) -> BaseGeometry | None:
    """Return the tissue that tiling found, level-0 pixels; None where its outline is missing or cannot be read."""
    try:
        areas = read_geojson(outline, bounds_origin=Point(index.bounds.x, index.bounds.y))
    except AnnotationError:
        note(f"slide {index.slide_id}: no outline of its tissue; tissue that was not analysed is not shown")
        return None
    return shapely.union_all([area.region for area in areas])


def _draw(
    read: Callable[[], SlideTiles],
    source: MapSource,
    section: HeatmapSection,
    folder: RunFolder,
    note: Callable[[str], None],
) -> None:
    """Draw all maps of a slide, whose tiles are read with ``read``."""
    tiles, scores, record = read(), source.scores, source.record
    tissue = tissue_region(folder.tissue_outline(record.slide_id), tiles.index, note)
    with tiles.open() as reader:
        view = view_of(reader, tiles.index, section.mpp, tissue)
    caption = Caption(
        slide_id=record.slide_id,
        class_name=scores.classes[-1],
        probability=scores.probability[-1],
        model_id=source.model_id,
        outlines=lesion_outlines(record.annotation, tiles.index.bounds),
    )
    best = best_tiles(scores)
    heatmaps = SlideHeatmaps(tiles.index, scores, view, caption, best, read_tiles(tiles.only(best)), note)
    for kind in section.maps:
        picture, facts = heatmaps.draw(kind, source.fingerprint)
        write_overlay(folder.overlay(record.slide_id, kind), picture, facts)


def _drawn_from(picture: Path) -> str | None:
    """Return the fingerprint of a stored picture, None where the picture or its sidecar is missing."""
    try:
        stored = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(stored.get("fingerprint")) if picture.exists() else None
