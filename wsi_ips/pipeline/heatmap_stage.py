"""Stage ``heatmap``: draw the score maps of predicted slides over their H&E, and write hand-off packages. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import shapely
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import read_annotation, read_geojson
from wsi_ips.config import HandoffSection, HeatmapSection
from wsi_ips.errors import AnnotationClassError, AnnotationError
from wsi_ips.evaluation.calibration import Calibration
from wsi_ips.geometry import Point
from wsi_ips.inference.slide_scores import SlideScores
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint_card import read_card
from wsi_ips.pipeline.slide_predictions import RunPredictions
from wsi_ips.pipeline.slide_states import Stage
from wsi_ips.provenance import fingerprint, parse_object
from wsi_ips.results import handoff_package
from wsi_ips.results.handoff_formats import HANDOFF_FORMATS
from wsi_ips.results.handoff_package import Material, stored_package, write_package
from wsi_ips.results.overlay import Caption, write_overlay
from wsi_ips.results.score_maps import LESION_MAP, SCORE_MAPS
from wsi_ips.results.score_raster import ScoreMaps, tile_geometry
from wsi_ips.results.slide_heatmaps import SlideHeatmaps, best_tiles, view_of
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.stream import read_tiles

SCHEMA_VERSION = 4


@dataclass(frozen=True)
class MapSource:
    """A predicted slide to draw or to hand over: its scores, their model, and the fingerprint of what is written."""

    record: SlideRecord
    scores: SlideScores
    model_id: str
    fingerprint: str


@dataclass(frozen=True)
class RunMaps:
    """Maps of the predicted slides of a run: how they are drawn and handed over."""

    predictions: RunPredictions
    heatmap: HeatmapSection
    handoff: HandoffSection


def to_draw(maps: RunMaps, names: Sequence[str] = ()) -> list[SlideRecord]:
    """Return the predicted slides to draw: the named ones, else those of the recipe's splits or without a split."""
    wanted = (*maps.heatmap.splits, None)
    return [r for r in maps.predictions.predicted() if (r.slide_id in names if names else r.split in wanted)]


def heatmap_stage(maps: RunMaps, names: Sequence[str] = ()) -> int:
    """Draw all slides whose pictures are not up to date and return their number."""
    section, predictions = maps.heatmap, maps.predictions
    model_id, calibration = read_card(predictions.checkpoint).model_id, predictions.calibration()
    due = []
    for record in to_draw(maps, names):
        scores = predictions.scores(record, calibration)
        source = MapSource(record, scores, model_id, heatmap_fingerprint(section, scores, calibration))
        pictures = [predictions.folder.overlay(record.slide_id, kind) for kind in section.maps]
        if not all(_drawn_from(picture) == source.fingerprint for picture in pictures):
            due.append(source)
    _each(predictions, due, "heatmaps", "heatmap", partial(_draw, predictions, section))
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


def handoff_stage(maps: RunMaps, names: Sequence[str] = ()) -> int:
    """Write the packages that are not up to date and the tables of all slides; return the number of packages."""
    formats, predictions = maps.handoff.formats, maps.predictions
    if not formats:
        return 0
    model_id, calibration = read_card(predictions.checkpoint).model_id, predictions.calibration()
    due = []
    for record in to_draw(maps, names):
        state = predictions.states[record.slide_id]
        if state.state == "failed" and state.stage == "heatmap":
            continue  # it has no pictures; its state gives the reason
        scores = predictions.scores(record, calibration)
        source = MapSource(record, scores, model_id, handoff_fingerprint(maps, scores, calibration))
        stored = stored_package(predictions.folder.handoff(record.slide_id))
        if stored is None or stored["fingerprint"] != source.fingerprint:
            due.append(source)
    _each(predictions, due, "hand-off packages", "handoff", partial(_pack, maps))
    if due:
        names = [record.slide_id for record in predictions.slides.records]
        for name in formats:
            HANDOFF_FORMATS[name].join(predictions.folder.handoffs, names)
    return len(due)


def handoff_fingerprint(maps: RunMaps, scores: SlideScores, calibration: Calibration) -> str:
    """Return the fingerprint that an up-to-date package of a slide has."""
    drawn = heatmap_fingerprint(maps.heatmap, scores, calibration)
    return fingerprint("handoff", handoff_package.SCHEMA_VERSION, maps.handoff, drawn)


def score_maps(maps: RunMaps, index: TileIndex, source: MapSource) -> ScoreMaps:
    """Return the maps of a recipe for one slide, ready to hand over; first the one that lesions are outlined on."""
    scores = source.scores
    return ScoreMaps(
        slide_id=index.slide_id,
        class_name=scores.classes[-1],
        probability=scores.probability[-1],
        model_id=source.model_id,
        fingerprint=source.fingerprint,
        scores={name: SCORE_MAPS[name].values(scores) for name in dict.fromkeys((LESION_MAP, *maps.heatmap.maps))},
        threshold=maps.handoff.threshold,
        **tile_geometry(index),
    )


def _each(
    predictions: RunPredictions, due: Sequence[MapSource], title: str, stage: Stage, write: Callable[[MapSource], None]
) -> None:
    """Call ``write`` for every slide that is due; a failure becomes the state of the slide."""
    if not due:
        return
    with predictions.progress.stage(title, len(due), "slides") as advance:
        for source in due:
            predictions.states.fence(source.record.slide_id, stage, partial(write, source))
            advance(1)
    predictions.states.save()


def _draw(predictions: RunPredictions, section: HeatmapSection, source: MapSource) -> None:
    """Draw all maps of a slide."""
    scores, record, note = source.scores, source.record, predictions.progress.note
    tiles, folder = predictions.slides.tiles(record), predictions.folder
    tissue = tissue_region(folder.tissue_outline(record.slide_id), tiles.index, note)
    with tiles.open() as reader:
        view = view_of(reader, tiles.index, section.mpp, tissue)
    corner = Point(tiles.index.bounds.x, tiles.index.bounds.y)
    lesions: list[shapely.Polygon] = []
    if record.annotation is not None:
        with suppress(AnnotationClassError):  # a remark of the tile stage
            classes = predictions.slides.tiling.tiles.annotation_classes
            lesions = read_annotation(record.annotation, bounds_origin=corner, classes=classes).lesions()
    caption = Caption(
        slide_id=record.slide_id,
        class_name=scores.classes[-1],
        probability=scores.probability[-1],
        model_id=source.model_id,
        outlines=tuple(shapely.get_coordinates(lesion.exterior)[:-1] for lesion in lesions),
        unseen=predictions.states[record.slide_id].not_analysed,
    )
    best = best_tiles(scores)
    heatmaps = SlideHeatmaps(tiles.index, scores, view, caption, best, read_tiles(tiles.only(best)), note)
    for kind in section.maps:
        picture, facts = heatmaps.draw(kind, source.fingerprint)
        write_overlay(folder.overlay(record.slide_id, kind), picture, facts)


def _pack(maps: RunMaps, source: MapSource) -> None:
    """Write the package of a slide."""
    predictions, slide_id = maps.predictions, source.record.slide_id
    folder, tiles = predictions.folder, predictions.slides.tiles(source.record)
    material = Material(
        overlays=[folder.overlay(slide_id, kind) for kind in maps.heatmap.maps],
        read_tiles=lambda rows: read_tiles(tiles.only(rows)),
        tissue=tissue_region(folder.tissue_outline(slide_id), tiles.index, predictions.progress.note),
        unseen=predictions.states[slide_id].not_analysed,
    )
    found = score_maps(maps, tiles.index, source)
    write_package(folder.handoff(slide_id), found, material, formats=maps.handoff.formats)


def _drawn_from(picture: Path) -> str | None:
    """Return the fingerprint of a stored picture, None where the picture or its sidecar is missing."""
    try:
        stored = parse_object(picture.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return None
    return str(stored.get("fingerprint")) if picture.exists() else None
