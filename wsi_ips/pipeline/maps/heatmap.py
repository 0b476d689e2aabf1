"""Stage ``heatmap``: probability and attention of predicted slides over their H&E; no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import read_annotation, read_geojson
from wsi_ips.errors import AnnotationError, EvaluationError, RecipeError
from wsi_ips.geometry import Box, Point
from wsi_ips.inference import SlideScores
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.calibration import Calibration
from wsi_ips.model.card import read_card
from wsi_ips.pipeline.maps.layers import ALWAYS, map_kinds, map_scores
from wsi_ips.pipeline.prediction.scored import checkpoint_folder, model_calibration, predicted, slide_scores
from wsi_ips.pipeline.run import Run
from wsi_ips.provenance import fingerprint
from wsi_ips.results import Caption, View, draw_overlay, sidecar, tile_raster, write_overlay
from wsi_ips.results.alignment import ALIGNMENT_TILES, LEAST_ALIGNMENT, alignment_correlation
from wsi_ips.results.overlay import Kind, mask_in
from wsi_ips.slides import read_area
from wsi_ips.tiles import TileIndex, read_tiles

SCHEMA_VERSION = 2
KINDS = ALWAYS


def to_draw(run: Run, names: Sequence[str] = ()) -> list[SlideRecord]:
    """Predicted slides to draw: the named ones, else those of the recipe's splits and those without one."""
    wanted = (*run.recipe.heatmap.splits, None)
    return [r for r in predicted(run) if (r.slide_id in names if names else r.split in wanted)]


def heatmap_stage(run: Run, names: Sequence[str] = ()) -> int:
    """Draw all slides whose pictures are not up to date; the number of slides worked on."""
    card = read_card(checkpoint_folder(run))
    model_id = card.model_id
    if run.recipe.heatmap.score == "evidence" and not card.evidence:
        raise RecipeError(
            f"key `heatmap.score`: model {model_id} was not trained with `model.evidence`, so nothing adds up to its "
            "decision; train with it, or take `probability`"
        )
    due = []
    calibration = model_calibration(run)
    for record in to_draw(run, names):
        scores = slide_scores(run, record, calibration)
        wanted = heatmap_fingerprint(run, scores, calibration)
        if not all(_drawn_from(run, record, kind) == wanted for kind in map_kinds(run.recipe.heatmap)):
            due.append((record, scores, wanted))
    if due:
        with run.progress.stage("heatmaps", len(due), "slides") as advance:
            for record, scores, wanted in due:
                draw = partial(_draw, run, record, scores, wanted, model_id)
                run.states.fence(record.slide_id, "heatmap", draw)
                advance(1)
        run.states.save()
    return len(due)


def heatmap_fingerprint(run: Run, scores: SlideScores, calibration: Calibration) -> str:
    """Fingerprint that the pictures of a slide must have to be up to date."""
    return fingerprint("heatmap", SCHEMA_VERSION, run.recipe.heatmap, scores.fingerprint, calibration.hash)


def tissue_region(run: Run, record: SlideRecord, index: TileIndex) -> BaseGeometry | None:
    """Tissue that tiling found, level-0 pixels; None where its outline is gone or cannot be read."""
    path, origin = run.folder.tissue_outline(record.slide_id), Point(index.bounds.x, index.bounds.y)
    try:
        return shapely.union_all([area.region for area in read_geojson(path, bounds_origin=origin)])
    except AnnotationError:
        run.progress.note(f"slide {record.slide_id}: no outline of its tissue; what was not analysed is not shown")
        return None


def _draw(run: Run, record: SlideRecord, scores: SlideScores, wanted: str, model_id: str) -> None:
    section, index = run.recipe.heatmap, run.index(record)
    with run.opener(record)() as reader:
        area = index.shown_area
        pixels, mpp = read_area(reader, area, section.mpp, section.max_side_px)
    tissue = tissue_region(run, record, index)
    view = View(pixels, area, mpp)
    if tissue is not None:
        view = replace(view, tissue=mask_in(view, tissue))
    caption = Caption(
        slide_id=record.slide_id,
        class_name=scores.classes[-1],
        probability=scores.probability[-1],
        model_id=model_id,
        outlines=_outlines(record, index.bounds),
    )
    for kind in map_kinds(section):
        tiles, values = map_scores(scores, kind)
        raster = tile_raster(
            index.x[tiles],
            index.y[tiles],
            values,
            bounds=index.grid,
            stride_px0=index.stride_px0,
            footprint_px0=index.plan.footprint_px0,
        )
        # On this map tissue without a colour was analysed and not kept; its title says so.
        shown = replace(view, tissue=None) if kind == "leave-one-out" else view
        picture = draw_overlay(shown, raster, caption, kind=kind, opacity=section.opacity)
        facts = sidecar(shown, raster, caption, kind=kind, fingerprint=wanted)
        plain = picture
        if caption.outlines:  # they would cover texture
            plain = draw_overlay(shown, raster, replace(caption, outlines=()), kind=kind, opacity=section.opacity)
        facts["alignment"] = _alignment(run, record, scores, plain, facts)
        write_overlay(run.folder.overlay(record.slide_id, kind), picture, facts)


def _alignment(
    run: Run, record: SlideRecord, scores: SlideScores, picture: Image.Image, facts: dict[str, Any]
) -> float | None:
    """Self-test: the most suspicious tiles, read again, against what the picture shows at their place.

    About 1 where the map lies on its tissue; None where nothing can be compared.
    """
    index = run.index(record)
    best = np.argsort(-scores.positive_probability, kind="stable")[:ALIGNMENT_TILES]
    patches = read_tiles(run.tiles(record).only(best.astype(np.int32)))
    try:
        found = alignment_correlation(np.asarray(picture), facts, patches, index.x[best], index.y[best])
    except EvaluationError as error:
        run.progress.note(str(error))
        return None
    if found < LEAST_ALIGNMENT:
        run.progress.note(f"slide {record.slide_id}: the map may be off its tissue (alignment {found:.2f}); report it")
    return round(found, 4)


def _outlines(record: SlideRecord, bounds: Box) -> tuple[NDArray[np.float64], ...]:
    """Outer rings of the annotated lesions."""
    if record.annotation is None:
        return ()
    regions = read_annotation(record.annotation, bounds_origin=Point(bounds.x, bounds.y))
    return tuple(shapely.get_coordinates(lesion.exterior)[:-1] for lesion in regions.lesions())


def _drawn_from(run: Run, record: SlideRecord, kind: Kind) -> str | None:
    path = run.folder.overlay(record.slide_id, kind)
    try:
        stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(stored.get("fingerprint")) if path.exists() else None
