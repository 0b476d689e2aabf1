"""Tiling one slide: from an open slide to its tile index and everything people look at. Writes nothing."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import shapely

from wsi_ips.annotations import Regions, geojson_of, read_annotation, read_tissue
from wsi_ips.config import Recipe, TissueSection
from wsi_ips.geometry import Point, Size
from wsi_ips.manifest import SlideRecord
from wsi_ips.results.tissue import Tiling, draw_tissue, png_bytes, preview
from wsi_ips.slides import Overview, SlideReader, read_overview
from wsi_ips.tiles import IndexOrigin, Recall, TileIndex, TileRules, build_index, tissue_recall
from wsi_ips.tiles.interop import imported_index, read_foreign
from wsi_ips.tissue import (
    BITS,
    TissueMask,
    TissueRules,
    bits_of,
    flag_tiles,
    look_of,
    mask_of,
    outline_of,
    remarks_on,
    segment_tissue,
    suspicion,
    with_artifacts,
)

LOST = 0.99
"""Less of the annotated tumour in tiles than this is remarked."""


@dataclass(frozen=True)
class TiledSlide:
    """What tiling one slide came to; plain values that travel between processes.

    Attributes
    ----------
    index
        Its tiles, to be stored last: it is what says that the slide is done.
    row
        Columns of the slide's row in the table of states; ``state`` is ``ok`` or ``empty``.
    files
        What goes into the run folder before the index: path relative to it, and content.
    """

    index: TileIndex
    row: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)


def tile_slide(
    reader: SlideReader, record: SlideRecord, recipe: Recipe, *, slide_identity: str, fingerprint: str
) -> TiledSlide:
    """Segment, lay the grid, flag, measure and draw.

    Parameters
    ----------
    reader
        The slide, opened as the recipe says; left open.
    record
        Its row of the manifest.
    recipe
        Sections ``tissue`` and ``tiles`` are used.
    slide_identity, fingerprint
        Stored with the index.

    Raises
    ------
    SlideError
        The slide cannot be read or has no scale.
    AnnotationError
        Its annotation or its tissue mask cannot be used.
    """
    origin = Point(reader.info.bounds.x, reader.info.bounds.y)
    regions = read_annotation(record.annotation, bounds_origin=origin) if record.annotation else None
    section = tissue_section(recipe.tissue, record)
    overview = read_overview(reader, section.mpp)
    tissue = _tissue_of(reader, record, section, overview, origin)
    tiles = recipe.tiles
    lay_tiles = partial(imported_index, read_foreign(record.coordinates)) if record.coordinates else build_index
    every = lay_tiles(
        reader.info,
        tissue,
        TileRules(tiles.mpp, tiles.patch_px, tiles.stride, tiles.min_tissue_fraction),
        IndexOrigin(record.slide_id, slide_identity, fingerprint),
        tumour_region=None if regions is None else regions.tumour,
    )
    flags = flag_tiles(overview, tissue, every.boxes_px0)
    # Whoever brings tiles of their own wants those: they are flagged, and all stay.
    exclude = 0 if record.coordinates else bits_of(recipe.tiles.exclude_flags)
    index = every.flagged(flags, exclude=exclude)
    tiling = Tiling(np.stack([every.x, every.y], axis=1), flags, (flags & exclude) == 0, every.grid, every.stride_px0)
    recall = None if regions is None else tissue_recall(regions.lesions(), tissue, index.boxes_px0, mpp=index.mpp)
    remarks = _remarks(tissue, index, tiling, recall)
    return TiledSlide(
        replace(index, look=look_of(overview.thumbnail)),
        _row(tissue, index, recipe, remarks, left_out=len(every) - len(index)),
        _files(overview, tissue, index, tiling, regions, recall, remarks, origin),
    )


def tissue_section(section: TissueSection, record: SlideRecord) -> TissueSection:
    """The recipe's section with what the manifest says about this slide."""
    own = {"method": record.tissue_method, "min_saturation": record.tissue_min_saturation}
    return section.model_copy(update={name: value for name, value in own.items() if value is not None})


def _tissue_of(
    reader: SlideReader, record: SlideRecord, section: TissueSection, overview: Overview, origin: Point
) -> TissueMask:
    """The mask that somebody drew, else the segmentation's."""
    size = reader.info.size_px0
    if record.tissue_mask is None:
        return segment_tissue(
            overview.thumbnail, mpp=overview.mpp, px0_size=size, rules=TissueRules(**section.segmentation())
        )
    height, width = overview.thumbnail.shape[:2]
    region = read_tissue(record.tissue_mask, bounds_origin=origin)
    drawn = mask_of(region, px0_size=size, mask_size=Size(width, height), source=record.tissue_mask.name)
    return with_artifacts(drawn, overview.thumbnail, mpp=overview.mpp)


def _remarks(tissue: TissueMask, index: TileIndex, tiling: Tiling, recall: Recall | None) -> list[str]:
    remarks = remarks_on(tissue, index.mpp)
    left_out = int((~tiling.kept).sum())
    if left_out:
        remarks.append(f"{left_out} tiles left out by their flags")
    if recall is not None and recall.lost:
        remarks.insert(0, f"{recall.lost} of {len(recall.lesions)} annotated lesions lost before any learning")
    elif recall is not None and recall.lesions and recall.in_tiles < LOST:
        remarks.append(f"{1 - recall.in_tiles:.1%} of the annotated tumour lies in no tile")
    return remarks


def _row(tissue: TissueMask, index: TileIndex, recipe: Recipe, remarks: list[str], *, left_out: int) -> dict[str, Any]:
    area_mm2 = tissue.area_um2(index.mpp) / 1e6
    return {
        "state": "ok" if len(index) else "empty",
        "reason": "" if len(index) else _why_empty(area_mm2, recipe, left_out),
        "reader": index.reader,
        "mpp": round(index.mpp.x, 5),
        "tiles": len(index),
        "tissue_mm2": round(area_mm2, 3),
        "tissue_method": tissue.rung,
        "remarks": "; ".join(remarks),
    }


def _why_empty(area_mm2: float, recipe: Recipe, left_out: int) -> str:
    if area_mm2 == 0:
        return "no tissue found; look at its picture, then lower `tissue.min_saturation` or `tissue.min_area_um2`"
    if left_out:
        return f"all {left_out} tiles are flagged; look at its picture, then shorten `tiles.exclude_flags`"
    return (
        f"{area_mm2:.3f} mm² of tissue, but no tile holds {recipe.tiles.min_tissue_fraction:.0%} of it; lower "
        "`tiles.min_tissue_fraction`, or tile finer"
    )


def _files(
    overview: Overview,
    tissue: TissueMask,
    index: TileIndex,
    tiling: Tiling,
    regions: Regions | None,
    recall: Recall | None,
    remarks: list[str],
    origin: Point,
) -> dict[str, bytes]:
    """Picture, preview, mask for QuPath and facts, under ``tissue/``."""
    lesions = [] if regions is None else [shapely.get_coordinates(part.exterior) for part in regions.lesions()]
    picture = draw_tissue(
        overview.thumbnail,
        tissue.mask,
        tiling,
        px0_size=index.size_px0,
        caption=f"{index.slide_id} · {len(index)} tiles · tissue: {tissue.rung}",
        lesions=lesions,
    )
    name = f"tissue/{index.slide_id}"
    outline = geojson_of([("Tissue", outline_of(tissue))], bounds_origin=origin, seed=index.slide_id)
    facts = json.dumps(_facts(tissue, index, tiling, recall, remarks), ensure_ascii=False, indent=1, allow_nan=False)
    return {
        f"{name}.png": png_bytes(picture),
        f"{name}.jpg": preview(overview.thumbnail, picture),
        f"{name}.geojson": outline,
        f"{name}.json": facts.encode("utf-8"),
    }


def _facts(
    tissue: TissueMask, index: TileIndex, tiling: Tiling, recall: Recall | None, remarks: list[str]
) -> dict[str, Any]:
    """What the contact sheet and the table of lesions show."""

    def counts(tiles: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, int]:
        return {flag: int(np.count_nonzero(tiling.flags[tiles] & bit)) for flag, bit in BITS.items()}

    return {
        "slide_id": index.slide_id,
        "fingerprint": index.fingerprint,
        "tiles": len(index),
        "tissue_mm2": round(tissue.area_um2(index.mpp) / 1e6, 3),
        "tissue_share": round(float(tissue.mask.mean()), 4),
        "method": tissue.method,
        "rung": tissue.rung,
        "remarks": remarks,
        "suspicion": suspicion(remarks),
        "flagged": counts(np.ones_like(tiling.kept)),
        "left_out": int((~tiling.kept).sum()),
        "lesions": None if recall is None else [lesion.to_dict() for lesion in recall.lesions],
        "tissue_recall": _number(None if recall is None else recall.in_tissue),
        "tile_recall": _number(None if recall is None else recall.in_tiles),
    }


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 5)
