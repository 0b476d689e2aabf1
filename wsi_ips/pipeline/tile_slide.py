"""Tile one slide: tissue mask, tile index, pictures and figures; the job of a worker process, without torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from wsi_ips.annotations import Classes, Regions, geojson_of, read_annotation, read_tissue
from wsi_ips.config import TilesSection, TilingSections, TissueSection
from wsi_ips.errors import AnnotationClassError, AnnotationError
from wsi_ips.geometry import Point, Size
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.provenance import atomic_write_bytes
from wsi_ips.results.contact_sheet import Tiling, draw_tissue, png_bytes, preview
from wsi_ips.slides import Overview, SlideReader, content_identity, read_overview, scale_remark
from wsi_ips.tiles.index import IndexOrigin, TileIndex, TileRules, build_index
from wsi_ips.tiles.interop.coordinate_import import imported_index, read_foreign
from wsi_ips.tiles.recall import Boxes, LesionRecall, NotAnalysed, Recall, not_analysed, tissue_recall
from wsi_ips.tiles.store import stored_fingerprint, stored_row, write_index
from wsi_ips.tissue.artifacts import BITS, FLAGS, excluding, flag_tiles
from wsi_ips.tissue.mask import TissueMask, mask_of, outline_of, remarks_on, suspicion, unsuited
from wsi_ips.tissue.perceptual_hash import look_of
from wsi_ips.tissue.segmentation import TissueRules, segment_tissue, with_artifacts

TILE_JOB = f"{__name__}:tile_job"
MIN_TUMOUR_SHARE = 0.99  # a smaller share of the annotated tumour in tiles gets a remark
MOST_OUTLINES = 5  # outlines that a message names


@dataclass(frozen=True)
class SlideTask:
    """One slide to tile."""

    slides: RunSlides  # this slide alone
    root: Path  # run folder, for the pictures


def tile_job(task: SlideTask) -> tuple[bool, dict[str, Any]]:
    """Tile a slide unless its index is up to date; return whether it was tiled, and columns of its row of the states.

    The index is stored last, together with the slide's row for the table of states: when the process is killed after
    that, nothing is done again.
    """
    with task.slides as slides:
        (record,) = slides.records
        store, wanted = slides.store, slides.tiles_fingerprint(record)
        if stored_fingerprint(store, record.slide_id, whole=True) == wanted:
            return False, stored_row(store, record.slide_id)
        identity = content_identity(record.path, slides.remote)
        with slides.opener(record)() as reader:
            tiled = tile_slide(reader, record, slides.tiling, slide_identity=identity, fingerprint=wanted)
        slides.require_same_content(record, identity)
        for name, content in tiled.files.items():
            atomic_write_bytes(task.root / name, content)
        if tiled.lost_tumour:  # after the pictures, which show where and why
            raise AnnotationError(tiled.lost_tumour, slide_id=record.slide_id)
        write_index(store, tiled.index, tiled.row)
        return True, tiled.row


@dataclass(frozen=True)
class Tiled:
    """Result of tiling a slide, not yet stored."""

    index: TileIndex
    row: dict[str, Any]  # columns of the slide's row of the states
    files: dict[str, bytes]  # files of the run folder by relative path
    lost_tumour: str  # why the slide cannot be used: annotated tumour in no tile; empty where it can


@dataclass(frozen=True)
class _Findings:
    """Everything that tiling found on a slide."""

    overview: Overview  # the thumbnail
    tissue: TissueMask
    index: TileIndex  # the tiles that are kept
    tiling: Tiling  # all tiles with their flags
    regions: Regions | None  # the annotation
    recall: Recall | None  # share of the annotation that lies in tissue and tiles
    unseen: NotAnalysed | None  # tissue that no tile covers; None where there is no tissue
    scale_remark: str  # how the header contradicts itself; empty where it does not
    doubtful: tuple[str, ...]  # flags that would exclude so much of the tissue that they exclude nothing
    unsuited: str  # why the slide is no stained section; empty where it is, or where a person vouches for it
    no_tumour: str  # why the annotation shows no tumour; empty where it does, or where there is none

    @property
    def left_out(self) -> int:
        """Number of tiles that flags exclude."""
        return int((~self.tiling.kept).sum())

    @property
    def tissue_mm2(self) -> float:
        """Tissue area."""
        return self.tissue.area_um2(self.index.mpp) / 1e6

    def remarks(self) -> list[str]:
        """Return what a person should check, the most important first."""
        remarks = remarks_on(self.tissue, self.index.mpp)
        remarks[:0] = [f"doubtful {text}" for text in self.doubtful]
        recall = self.recall
        if recall is not None and recall.lost:
            remarks.insert(0, f"{recall.lost} of {len(recall.lesions)} annotated lesions lost before any learning")
        elif recall is not None and recall.lesions and recall.in_tiles < MIN_TUMOUR_SHARE:
            remarks.append(f"{1 - recall.in_tiles:.1%} of the annotated tumour lies in no tile")
        if self.scale_remark:
            remarks.append(self.scale_remark)
        if self.regions is not None and (unused := self.regions.remark()):
            remarks.append(unused) if self.regions.unknown.is_empty else remarks.insert(0, unused)
        return [*([self.no_tumour] if self.no_tumour else []), *remarks]

    def lost_tumour(self, section: TilesSection) -> str:
        """Return the message about annotated tumour that lies in no tile; empty where none does, or it is accepted."""
        if self.recall is None or self.unsuited or section.accept_lost_tumour:
            return ""
        width, height = self.index.plan.footprint_px0.times(self.index.mpp)
        outside = self.recall.unseen(width * height)
        if not outside:
            return ""
        shown = [f"{le.area_um2 / 1e6:.3g} mm² at x {le.x_px0}, y {le.y_px0}: {_why(le)}" for le in outside]
        more = f"; and {len(shown) - MOST_OUTLINES} more" if len(shown) > MOST_OUTLINES else ""
        remedies = dict.fromkeys(REMEDIES.get(le.lost_to, SHORTEN) for le in outside)
        return (
            f"slide {self.index.slide_id}: {len(outside)} of {len(self.recall.lesions)} annotated outlines lie in no "
            f"tile, so nothing would learn from them or find them ({'; '.join(shown[:MOST_OUTLINES])}{more}); look at "
            f"tissue/{self.index.slide_id}.png, then {', or '.join(remedies)}; `tiles.accept_lost_tumour: true` keeps "
            "such slides"
        )


SHORTEN = "shorten `tiles.exclude_flags`"
REMEDIES = {
    "segmentation": "check that the outlines are of this slide, correct the mask (column `tissue_mask`) or lower "
    "`tissue.min_saturation` or `tissue.min_area_um2`",
    "tiling": "lower `tiles.min_tissue_fraction` or tile finer (tiles of another tool: make them again)",
}


def _why(lesion: LesionRecall) -> str:
    """Return why a lesion lies in no tile."""
    if lesion.lost_to == "segmentation":
        return f"{1 - lesion.in_tissue:.0%} of it was not found to be tissue"
    return "too little tissue for a tile, or the edge of the scan" if lesion.lost_to == "tiling" else lesion.lost_to


def tile_slide(
    reader: SlideReader, record: SlideRecord, tiling: TilingSections, *, slide_identity: str, fingerprint: str
) -> Tiled:
    """Segment the tissue, lay the grid of tiles, flag and measure them, and draw the pictures; write nothing."""
    origin = Point(reader.info.bounds.x, reader.info.bounds.y)
    regions, no_tumour = _regions_of(record, origin, tiling.tiles.annotation_classes)
    own = {"method": record.tissue_method, "min_saturation": record.tissue_min_saturation}
    section = tiling.tissue.model_copy(update={name: value for name, value in own.items() if value is not None})
    overview = read_overview(reader, section.mpp)
    tissue = _tissue_of(reader, record, section, overview, origin)
    tiles = tiling.tiles
    lay_tiles = partial(imported_index, read_foreign(record.coordinates)) if record.coordinates else build_index
    every = lay_tiles(
        reader.info,
        tissue,
        TileRules(tiles.mpp, tiles.patch_px, tiles.stride, tiles.min_tissue_fraction),
        IndexOrigin(record.slide_id, slide_identity, fingerprint),
        tumour_region=None if regions is None else regions.tumour,
    )
    flags = flag_tiles(overview, tissue, every.boxes_px0)
    # Imported tiles are flagged too, but none is excluded.
    exclude = 0
    doubtful: tuple[str, ...] = ()
    if not record.coordinates:
        exclude, doubtful = excluding(tiles.exclude_flags, flags, every.tissue_fraction, tissue)
    # Who draws the tissue, names a method for this slide or brings its tiles vouches for it.
    vouched = any((record.tissue_mask, record.tissue_method, record.coordinates))
    why_not = "" if vouched else unsuited(tissue, overview.thumbnail)
    index = every.flagged(flags, exclude=exclude)
    if why_not:
        index = every.flagged(np.ones_like(flags), exclude=1)  # which keeps no tile
    laid = Tiling(np.stack([every.x, every.y], axis=1), flags, (flags & exclude) == 0, every.grid, every.stride_px0)
    tiles_of = (index.boxes_px0, _excluded(every, laid))
    recall = None if regions is None else tissue_recall(regions.lesions(), tissue, *tiles_of, mpp=index.mpp)
    unseen = None if why_not else not_analysed(tissue, *tiles_of, mpp=index.mpp)
    said = scale_remark(reader.info)
    found = _Findings(overview, tissue, index, laid, regions, recall, unseen, said, doubtful, why_not, no_tumour)
    source = "pixels" if tiling.slides.unit == "pixels" else index.mpp_source
    look = "" if tissue.rung == "all" else look_of(overview.thumbnail)  # it recognises stain on glass
    index = replace(index, look=look, mpp_source=source)
    lost = found.lost_tumour(tiles)
    return Tiled(index, _row(found, tiles), _files(found, lost, origin), lost)


def _excluded(every: TileIndex, laid: Tiling) -> dict[str, Boxes]:
    """Return the boxes of the excluded tiles by flag; a tile with several counts for the first of them."""
    found: dict[str, Boxes] = {}
    left, boxes = ~laid.kept, every.boxes_px0
    for flag in FLAGS:
        here = left & ((laid.flags & BITS[flag]) > 0)
        found[flag], left = boxes[here], left & ~here
    return found


def _regions_of(record: SlideRecord, origin: Point, classes: Classes) -> tuple[Regions | None, str]:
    """Read the outlined tumour; None with the reason where no outline is known to be tumour and some may be.

    Those may still be classes of the recipe, from which training learns.
    """
    if record.annotation is None:
        return None, ""
    try:
        return read_annotation(record.annotation, bounds_origin=origin, classes=classes), ""
    except AnnotationClassError as error:
        return None, str(error)


def _tissue_of(
    reader: SlideReader, record: SlideRecord, section: TissueSection, overview: Overview, origin: Point
) -> TissueMask:
    """Return the hand-drawn mask, or that of the segmentation."""
    size = reader.info.size_px0
    if record.tissue_mask is None:
        return segment_tissue(
            overview.thumbnail, mpp=overview.mpp, px0_size=size, rules=TissueRules(**section.segmentation())
        )
    height, width = overview.thumbnail.shape[:2]
    region = read_tissue(record.tissue_mask, bounds_origin=origin)
    drawn = mask_of(region, px0_size=size, mask_size=Size(width, height), source=record.tissue_mask.name)
    return with_artifacts(drawn, overview.thumbnail, mpp=overview.mpp)


def _row(found: _Findings, section: TilesSection) -> dict[str, Any]:
    tiles = len(found.index)
    return {
        "state": "unsuited" if found.unsuited else "ok" if tiles else "empty",
        "reason": "" if tiles else _why_empty(found, section),
        "reader": found.index.reader,
        "mpp": round(found.index.mpp.x, 5),
        "tiles": tiles,
        "tissue_mm2": round(found.tissue_mm2, 3),
        "share_not_analysed": None if found.unseen is None else found.unseen.share,
        "not_analysed_mm2": "" if found.unseen is None else found.unseen.stored,
        "tissue_method": found.tissue.rung,
        "remarks": "; ".join(found.remarks()),
    }


def _why_empty(found: _Findings, section: TilesSection) -> str:
    if found.unsuited:
        return f"{found.unsuited}; to have it read all the same, set its `tissue_method` in the manifest, to `auto` say"
    if found.tissue_mm2 == 0:
        return "no tissue found; look at its picture, then lower `tissue.min_saturation` or `tissue.min_area_um2`"
    if found.left_out:
        return f"all {found.left_out} tiles are flagged; look at its picture, then shorten `tiles.exclude_flags`"
    plan, bounds = found.index.plan, found.index.bounds
    if plan.footprint_px0.x > bounds.width or plan.footprint_px0.y > bounds.height:
        slide_um, tile_um = (
            (x * found.index.mpp.x, y * found.index.mpp.y)
            for x, y in ((bounds.width, bounds.height), plan.footprint_px0)
        )
        return (
            f"the slide ({slide_um[0]:.0f} x {slide_um[1]:.0f} µm) is smaller than a tile ({tile_um[0]:.0f} x "
            f"{tile_um[1]:.0f} µm); lower `tiles.patch_px`, or set `tiles.mpp` finer"
        )
    return (
        f"{found.tissue_mm2:.3f} mm² of tissue, but no tile holds {section.min_tissue_fraction:.0%} of it; lower "
        "`tiles.min_tissue_fraction`, or tile finer"
    )


def _files(found: _Findings, lost_tumour: str, origin: Point) -> dict[str, bytes]:
    """Return picture, preview, mask for QuPath and figures, under ``tissue/``."""
    index, tissue, thumbnail = found.index, found.tissue, found.overview.thumbnail
    lesions = [] if found.regions is None else found.regions.lesions()
    unseen = "" if found.unseen is None else f" · not analysed: {found.unseen}"
    picture = draw_tissue(
        thumbnail,
        tissue.mask,
        found.tiling,
        px0_size=index.size_px0,
        caption=f"{index.slide_id} · {len(index)} tiles · tissue: {tissue.rung}{unseen}",
        lesions=[shapely.get_coordinates(part.exterior) for part in lesions],
    )
    name = f"tissue/{index.slide_id}"
    outline = geojson_of([("Tissue", outline_of(tissue))], bounds_origin=origin, seed=index.slide_id)
    figures = json.dumps(_figures(found, lost_tumour), ensure_ascii=False, indent=1, allow_nan=False)
    return {
        f"{name}.png": png_bytes(picture),
        f"{name}.jpg": preview(thumbnail, picture),
        f"{name}.geojson": outline,
        f"{name}.json": figures.encode("utf-8"),
    }


def _figures(found: _Findings, lost_tumour: str) -> dict[str, Any]:
    """Return the figures of the contact sheet and of the table of lesions."""
    flags, recall, remarks, unseen = found.tiling.flags, found.recall, found.remarks(), found.unseen
    return {
        "slide_id": found.index.slide_id,
        "fingerprint": found.index.fingerprint,
        "tiles": len(found.index),
        "tissue_mm2": round(found.tissue_mm2, 3),
        "tissue_share": round(float(found.tissue.mask.mean()), 4),
        "method": found.tissue.method,
        "rung": found.tissue.rung,
        "remarks": remarks,
        "suspicion": suspicion(remarks),
        "flagged": {flag: int(np.count_nonzero(flags & bit)) for flag, bit in BITS.items()},
        "left_out": found.left_out,
        "share_not_analysed": None if unseen is None else unseen.share,
        "not_analysed_mm2": {} if unseen is None else unseen.mm2,
        "lost_tumour": lost_tumour,
        "lesions": None if recall is None else [lesion.to_dict() for lesion in recall.lesions],
        "tissue_recall": None if recall is None or math.isnan(recall.in_tissue) else round(recall.in_tissue, 5),
        "tile_recall": None if recall is None or math.isnan(recall.in_tiles) else round(recall.in_tiles, 5),
    }
