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
from wsi_ips.errors import AnnotationClassError
from wsi_ips.geometry import Point, Size
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.provenance import atomic_write_bytes
from wsi_ips.results.contact_sheet import Tiling, draw_tissue, png_bytes, preview
from wsi_ips.slides import Overview, SlideReader, content_identity, read_overview
from wsi_ips.tiles.index import IndexOrigin, TileIndex, TileRules, build_index
from wsi_ips.tiles.interop.coordinate_import import imported_index, read_foreign
from wsi_ips.tiles.recall import Recall, tissue_recall
from wsi_ips.tiles.store import stored_fingerprint, stored_row, write_index
from wsi_ips.tissue.artifacts import BITS, bits_of, flag_tiles
from wsi_ips.tissue.mask import TissueMask, mask_of, outline_of, remarks_on, suspicion
from wsi_ips.tissue.perceptual_hash import look_of
from wsi_ips.tissue.segmentation import TissueRules, segment_tissue, with_artifacts

TILE_JOB = f"{__name__}:tile_job"
MIN_TUMOUR_SHARE = 0.99  # a smaller share of the annotated tumour in tiles gets a remark


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
        if stored_fingerprint(store, record.slide_id) == wanted:
            return False, stored_row(store, record.slide_id)
        identity = content_identity(record.path, slides.remote)
        with slides.opener(record)() as reader:
            index, row, files = tile_slide(reader, record, slides.tiling, slide_identity=identity, fingerprint=wanted)
        for name, content in files.items():
            atomic_write_bytes(task.root / name, content)
        write_index(store, index, row)
        return True, row


@dataclass(frozen=True)
class _Findings:
    """Everything that tiling found on a slide."""

    overview: Overview  # the thumbnail
    tissue: TissueMask
    index: TileIndex  # the tiles that are kept
    tiling: Tiling  # all tiles with their flags
    regions: Regions | None  # the annotation
    recall: Recall | None  # share of the annotation that lies in tissue and tiles
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
        if self.left_out:
            remarks.append(f"{self.left_out} tiles left out by their flags")
        recall = self.recall
        if recall is not None and recall.lost:
            remarks.insert(0, f"{recall.lost} of {len(recall.lesions)} annotated lesions lost before any learning")
        elif recall is not None and recall.lesions and recall.in_tiles < MIN_TUMOUR_SHARE:
            remarks.append(f"{1 - recall.in_tiles:.1%} of the annotated tumour lies in no tile")
        if self.regions is not None and (unused := self.regions.remark()):
            remarks.append(unused) if self.regions.unknown.is_empty else remarks.insert(0, unused)
        return [*([self.no_tumour] if self.no_tumour else []), *remarks]


def tile_slide(
    reader: SlideReader, record: SlideRecord, tiling: TilingSections, *, slide_identity: str, fingerprint: str
) -> tuple[TileIndex, dict[str, Any], dict[str, bytes]]:
    """Segment the tissue, lay the grid of tiles, flag and measure them, and draw the pictures; write nothing.

    Returns the index, columns of the slide's row of the states, and files of the run folder by relative path.
    """
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
    exclude = 0 if record.coordinates else bits_of(tiles.exclude_flags)
    index = every.flagged(flags, exclude=exclude)
    laid = Tiling(np.stack([every.x, every.y], axis=1), flags, (flags & exclude) == 0, every.grid, every.stride_px0)
    recall = None if regions is None else tissue_recall(regions.lesions(), tissue, index.boxes_px0, mpp=index.mpp)
    found = _Findings(overview, tissue, index, laid, regions, recall, no_tumour)
    source = "pixels" if tiling.slides.unit == "pixels" else index.mpp_source
    look = "" if tissue.rung == "all" else look_of(overview.thumbnail)  # it recognises stain on glass
    index = replace(index, look=look, mpp_source=source)
    return index, _row(found, tiles), _files(found, found.remarks(), origin)


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
        "state": "ok" if tiles else "empty",
        "reason": "" if tiles else _why_empty(found, section),
        "reader": found.index.reader,
        "mpp": round(found.index.mpp.x, 5),
        "tiles": tiles,
        "tissue_mm2": round(found.tissue_mm2, 3),
        "tissue_method": found.tissue.rung,
        "remarks": "; ".join(found.remarks()),
    }


def _why_empty(found: _Findings, section: TilesSection) -> str:
    if found.tissue_mm2 == 0:
        return "no tissue found; look at its picture, then lower `tissue.min_saturation` or `tissue.min_area_um2`"
    if found.left_out:
        return f"all {found.left_out} tiles are flagged; look at its picture, then shorten `tiles.exclude_flags`"
    return (
        f"{found.tissue_mm2:.3f} mm² of tissue, but no tile holds {section.min_tissue_fraction:.0%} of it; lower "
        "`tiles.min_tissue_fraction`, or tile finer"
    )


def _files(found: _Findings, remarks: list[str], origin: Point) -> dict[str, bytes]:
    """Return picture, preview, mask for QuPath and figures, under ``tissue/``."""
    index, tissue, thumbnail = found.index, found.tissue, found.overview.thumbnail
    lesions = [] if found.regions is None else found.regions.lesions()
    picture = draw_tissue(
        thumbnail,
        tissue.mask,
        found.tiling,
        px0_size=index.size_px0,
        caption=f"{index.slide_id} · {len(index)} tiles · tissue: {tissue.rung}",
        lesions=[shapely.get_coordinates(part.exterior) for part in lesions],
    )
    name = f"tissue/{index.slide_id}"
    outline = geojson_of([("Tissue", outline_of(tissue))], bounds_origin=origin, seed=index.slide_id)
    figures = json.dumps(_figures(found, remarks), ensure_ascii=False, indent=1, allow_nan=False)
    return {
        f"{name}.png": png_bytes(picture),
        f"{name}.jpg": preview(thumbnail, picture),
        f"{name}.geojson": outline,
        f"{name}.json": figures.encode("utf-8"),
    }


def _figures(found: _Findings, remarks: list[str]) -> dict[str, Any]:
    """Return the figures of the contact sheet and of the table of lesions."""
    flags, recall = found.tiling.flags, found.recall
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
        "lesions": None if recall is None else [lesion.to_dict() for lesion in recall.lesions],
        "tissue_recall": None if recall is None or math.isnan(recall.in_tissue) else round(recall.in_tissue, 5),
        "tile_recall": None if recall is None or math.isnan(recall.in_tiles) else round(recall.in_tiles, 5),
    }
