"""Stage ``handoff``: write a package for each drawn slide, in the formats of pathologists' programs. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from wsi_ips.config import Recipe
from wsi_ips.evaluation.calibration import Calibration
from wsi_ips.inference.slide_scores import SlideScores
from wsi_ips.model.checkpoint_card import read_card
from wsi_ips.pipeline.heatmap_stage import MapSource, heatmap_fingerprint, tissue_region, to_draw
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.slide_predictions import checkpoint_folder, model_calibration, slide_scores
from wsi_ips.provenance import fingerprint
from wsi_ips.results.handoff.content import Material
from wsi_ips.results.handoff.handoff_formats import HANDOFF_FORMATS
from wsi_ips.results.handoff.maps import ScoreMaps
from wsi_ips.results.handoff.package import SCHEMA_VERSION, stored_package, write_package
from wsi_ips.tiles import SlideTiles, TileIndex, read_tiles


def handoff_stage(run: Run, names: Sequence[str] = ()) -> int:
    """Write the packages that are not up to date and the tables of all slides; return the number of packages."""
    recipe, folder = run.recipe, run.folder
    if not recipe.handoff.formats:
        return 0
    model_id, calibration = read_card(checkpoint_folder(run)).model_id, model_calibration(run)
    due = []
    for record in to_draw(run, names):
        if run.states[record.slide_id].state == "failed" and run.states[record.slide_id].stage == "heatmap":
            continue  # it has no pictures; its state gives the reason
        scores = slide_scores(run, record, calibration)
        source = MapSource(record, scores, model_id, handoff_fingerprint(recipe, scores, calibration))
        stored = stored_package(folder.handoff(record.slide_id))
        if stored is None or stored["fingerprint"] != source.fingerprint:
            due.append(source)
    if due:
        with run.progress.stage("hand-off packages", len(due), "slides") as advance:
            for source in due:
                pack = partial(_pack, partial(run.tiles, source.record), source, recipe, folder, run.progress.note)
                run.states.fence(source.record.slide_id, "handoff", pack)
                advance(1)
        run.states.save()
        for name in recipe.handoff.formats:
            HANDOFF_FORMATS[name].join(folder.handoffs, [record.slide_id for record in run.records])
    return len(due)


def handoff_fingerprint(recipe: Recipe, scores: SlideScores, calibration: Calibration) -> str:
    """Return the fingerprint that an up-to-date package of a slide has."""
    drawn = heatmap_fingerprint(recipe.heatmap, scores, calibration)
    return fingerprint("handoff", SCHEMA_VERSION, recipe.handoff, drawn)


def score_maps(recipe: Recipe, index: TileIndex, source: MapSource) -> ScoreMaps:
    """Return the maps of a recipe for one slide, ready to hand over."""
    return ScoreMaps.of(
        index,
        source.scores,
        names=recipe.heatmap.maps,
        threshold=recipe.handoff.threshold,
        model_id=source.model_id,
        fingerprint=source.fingerprint,
    )


def _pack(
    read: Callable[[], SlideTiles],
    source: MapSource,
    recipe: Recipe,
    folder: RunFolder,
    note: Callable[[str], None],
) -> None:
    """Write the package of a slide, whose tiles are read with ``read``."""
    tiles, slide_id = read(), source.record.slide_id
    material = Material(
        overlays=[folder.overlay(slide_id, kind) for kind in recipe.heatmap.maps],
        read_tiles=lambda rows: read_tiles(tiles.only(rows)),
        tissue=tissue_region(folder.tissue_outline(slide_id), tiles.index, note),
    )
    maps = score_maps(recipe, tiles.index, source)
    write_package(folder.handoff(slide_id), maps, material, formats=recipe.handoff.formats)
