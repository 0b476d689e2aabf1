"""Stage ``heatmap``: draw the score maps of predicted slides over their H&E, and write hand-off packages. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import shapely
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import read_annotation, read_geojson
from wsi_ips.config import HeatmapSection, Recipe
from wsi_ips.errors import AnnotationClassError, AnnotationError
from wsi_ips.evaluation.calibration import Calibration
from wsi_ips.geometry import Point
from wsi_ips.inference.slide_scores import SlideScores
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint_card import read_card
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.slide_predictions import checkpoint_folder, model_calibration, predicted, slide_scores
from wsi_ips.pipeline.slide_states import Stage
from wsi_ips.provenance import fingerprint
from wsi_ips.results import handoff_package
from wsi_ips.results.handoff_formats import HANDOFF_FORMATS
from wsi_ips.results.handoff_package import Material, stored_package, write_package
from wsi_ips.results.overlay import Caption, write_overlay
from wsi_ips.results.score_maps import LESION_MAP, SCORE_MAPS
from wsi_ips.results.score_raster import ScoreMaps, tile_geometry
from wsi_ips.results.slide_heatmaps import SlideHeatmaps, best_tiles, view_of
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.stream import read_tiles

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
    section = run.recipe.heatmap
    model_id, calibration = read_card(checkpoint_folder(run)).model_id, model_calibration(run)
    due = []
    for record in to_draw(run, names):
        scores = slide_scores(run, record, calibration)
        source = MapSource(record, scores, model_id, heatmap_fingerprint(section, scores, calibration))
        pictures = [run.folder.overlay(record.slide_id, kind) for kind in section.maps]
        if not all(_drawn_from(picture) == source.fingerprint for picture in pictures):
            due.append(source)
    _each(run, due, "heatmaps", "heatmap", partial(_draw, run))
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


def handoff_stage(run: Run, names: Sequence[str] = ()) -> int:
    """Write the packages that are not up to date and the tables of all slides; return the number of packages."""
    recipe = run.recipe
    if not recipe.handoff.formats:
        return 0
    model_id, calibration = read_card(checkpoint_folder(run)).model_id, model_calibration(run)
    due = []
    for record in to_draw(run, names):
        if run.states[record.slide_id].state == "failed" and run.states[record.slide_id].stage == "heatmap":
            continue  # it has no pictures; its state gives the reason
        scores = slide_scores(run, record, calibration)
        source = MapSource(record, scores, model_id, handoff_fingerprint(recipe, scores, calibration))
        stored = stored_package(run.folder.handoff(record.slide_id))
        if stored is None or stored["fingerprint"] != source.fingerprint:
            due.append(source)
    _each(run, due, "hand-off packages", "handoff", partial(_pack, run))
    if due:
        for name in recipe.handoff.formats:
            HANDOFF_FORMATS[name].join(run.folder.handoffs, [record.slide_id for record in run.records])
    return len(due)


def handoff_fingerprint(recipe: Recipe, scores: SlideScores, calibration: Calibration) -> str:
    """Return the fingerprint that an up-to-date package of a slide has."""
    drawn = heatmap_fingerprint(recipe.heatmap, scores, calibration)
    return fingerprint("handoff", handoff_package.SCHEMA_VERSION, recipe.handoff, drawn)


def score_maps(recipe: Recipe, index: TileIndex, source: MapSource) -> ScoreMaps:
    """Return the maps of a recipe for one slide, ready to hand over; first the one that lesions are outlined on."""
    scores = source.scores
    return ScoreMaps(
        slide_id=index.slide_id,
        class_name=scores.classes[-1],
        probability=scores.probability[-1],
        model_id=source.model_id,
        fingerprint=source.fingerprint,
        scores={name: SCORE_MAPS[name].values(scores) for name in dict.fromkeys((LESION_MAP, *recipe.heatmap.maps))},
        threshold=recipe.handoff.threshold,
        **tile_geometry(index),
    )


def _each(run: Run, due: Sequence[MapSource], title: str, stage: Stage, write: Callable[[MapSource], None]) -> None:
    """Call ``write`` for every slide that is due; a failure becomes the state of the slide."""
    if not due:
        return
    with run.progress.stage(title, len(due), "slides") as advance:
        for source in due:
            run.states.fence(source.record.slide_id, stage, partial(write, source))
            advance(1)
    run.states.save()


def _draw(run: Run, source: MapSource) -> None:
    """Draw all maps of a slide."""
    tiles, scores, record, note = run.tiles(source.record), source.scores, source.record, run.progress.note
    tissue = tissue_region(run.folder.tissue_outline(record.slide_id), tiles.index, note)
    with tiles.open() as reader:
        view = view_of(reader, tiles.index, run.recipe.heatmap.mpp, tissue)
    corner = Point(tiles.index.bounds.x, tiles.index.bounds.y)
    lesions: list[shapely.Polygon] = []
    if record.annotation is not None:
        with suppress(AnnotationClassError):  # a remark of the tile stage
            lesions = read_annotation(record.annotation, bounds_origin=corner).lesions()
    caption = Caption(
        slide_id=record.slide_id,
        class_name=scores.classes[-1],
        probability=scores.probability[-1],
        model_id=source.model_id,
        outlines=tuple(shapely.get_coordinates(lesion.exterior)[:-1] for lesion in lesions),
    )
    best = best_tiles(scores)
    heatmaps = SlideHeatmaps(tiles.index, scores, view, caption, best, read_tiles(tiles.only(best)), note)
    for kind in run.recipe.heatmap.maps:
        picture, facts = heatmaps.draw(kind, source.fingerprint)
        write_overlay(run.folder.overlay(record.slide_id, kind), picture, facts)


def _pack(run: Run, source: MapSource) -> None:
    """Write the package of a slide."""
    recipe, folder, tiles, slide_id = run.recipe, run.folder, run.tiles(source.record), source.record.slide_id
    material = Material(
        overlays=[folder.overlay(slide_id, kind) for kind in recipe.heatmap.maps],
        read_tiles=lambda rows: read_tiles(tiles.only(rows)),
        tissue=tissue_region(folder.tissue_outline(slide_id), tiles.index, run.progress.note),
    )
    maps = score_maps(recipe, tiles.index, source)
    write_package(folder.handoff(slide_id), maps, material, formats=recipe.handoff.formats)


def _drawn_from(picture: Path) -> str | None:
    """Return the fingerprint of a stored picture, None where the picture or its sidecar is missing."""
    try:
        stored = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(stored.get("fingerprint")) if picture.exists() else None
