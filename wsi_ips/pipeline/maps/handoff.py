"""Stage ``handoff``: what pathologists get of each drawn slide, in the formats of their programs; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from wsi_ips.evaluation.calibration import Calibration
from wsi_ips.inference import SlideScores
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.card import read_card
from wsi_ips.pipeline.maps.heatmap import heatmap_fingerprint, tissue_region, to_draw
from wsi_ips.pipeline.maps.layers import ALWAYS, map_kinds, map_scores
from wsi_ips.pipeline.prediction.scored import checkpoint_folder, model_calibration, slide_scores
from wsi_ips.pipeline.run import Run
from wsi_ips.provenance import atomic_write_text, fingerprint
from wsi_ips.results.handoff import (
    Material,
    ScoreMaps,
    choose_tiles,
    draw_gallery,
    joined,
    stored_package,
    write_package,
)
from wsi_ips.results.handoff.package import SCHEMA_VERSION
from wsi_ips.tiles import TileIndex, read_tiles


def handoff_stage(run: Run, names: Sequence[str] = ()) -> int:
    """Write the packages that are not up to date, and the tables of all; the number of slides worked on."""
    if not run.recipe.handoff.formats:
        return 0
    model_id, calibration = read_card(checkpoint_folder(run)).model_id, model_calibration(run)
    due = []
    for record in to_draw(run, names):
        if run.states[record.slide_id].state == "failed" and run.states[record.slide_id].stage == "heatmap":
            continue  # it has no pictures, and its state says why
        scores = slide_scores(run, record, calibration)
        wanted = handoff_fingerprint(run, scores, calibration)
        stored = stored_package(run.folder.handoff(record.slide_id))
        if stored is None or stored["fingerprint"] != wanted:
            due.append((record, scores, wanted))
    if due:
        with run.progress.stage("hand-off packages", len(due), "slides") as advance:
            for record, scores, wanted in due:
                pack = partial(_pack, run, record, scores, wanted, model_id)
                run.states.fence(record.slide_id, "handoff", pack)
                advance(1)
        run.states.save()
        write_tables(run)
    return len(due)


def handoff_fingerprint(run: Run, scores: SlideScores, calibration: Calibration) -> str:
    """Fingerprint that the package of a slide must have to be up to date."""
    return fingerprint("handoff", SCHEMA_VERSION, run.recipe.handoff, heatmap_fingerprint(run, scores, calibration))


def score_maps(run: Run, index: TileIndex, scores: SlideScores, *, model_id: str, fingerprint: str) -> ScoreMaps:
    """Our own model's scores of a slide, ready to be handed over: the maps that have a score for every tile.

    Lesions are cut from the probability of single tiles, whichever map is drawn first: the threshold is one of it.
    """
    kinds = [*ALWAYS, *(kind for kind in map_kinds(run.recipe.heatmap) if kind not in (*ALWAYS, "leave-one-out"))]
    return ScoreMaps(
        slide_id=index.slide_id,
        class_name=scores.classes[-1],
        probability=scores.probability[-1],
        model_id=model_id,
        fingerprint=fingerprint,
        x=index.x,
        y=index.y,
        scores={str(kind): map_scores(scores, kind)[1] for kind in kinds},
        threshold=run.recipe.handoff.threshold,
        size_px0=index.size_px0,
        bounds=index.bounds,
        grid=index.grid,
        stride_px0=index.stride_px0,
        footprint_px0=index.plan.footprint_px0,
        mpp=index.mpp,
    )


def write_tables(run: Run) -> None:
    """Write ``lesions.csv``: the lesions of all packages, slides in the order of the manifest."""
    if "lesions" not in run.recipe.handoff.formats:
        return
    paths = [run.folder.handoff(r.slide_id) / f"{r.slide_id}_lesions.csv" for r in run.records]
    tables = [path.read_text(encoding="utf-8") for path in paths if path.exists()]
    atomic_write_text(run.folder.handoffs / "lesions.csv", joined(tables))


def _pack(run: Run, record: SlideRecord, scores: SlideScores, wanted: str, model_id: str) -> None:
    section, index = run.recipe.handoff, run.index(record)
    maps = score_maps(run, index, scores, model_id=model_id, fingerprint=wanted)
    gallery = None
    if "gallery" in section.formats and run.recipe.heatmap.top_tiles:
        choice = choose_tiles(maps, run.recipe.heatmap.top_tiles)
        gallery = draw_gallery(maps, choice, read_tiles(run.tiles(record).only(choice.tiles)))
    material = Material(
        overlays=[run.folder.overlay(record.slide_id, kind) for kind in map_kinds(run.recipe.heatmap)],
        gallery=gallery,
        tissue=tissue_region(run, record, index),
    )
    write_package(
        run.folder.handoff(record.slide_id),
        maps,
        material,
        formats=section.formats,
        every_tile=section.every_tile,
    )
