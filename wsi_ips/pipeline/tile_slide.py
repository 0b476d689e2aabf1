"""Tiling one slide: from an open slide to its tile index and everything people look at. Writes nothing."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from wsi_ips.annotations import read_asap
from wsi_ips.config import Recipe
from wsi_ips.manifest import SlideRecord
from wsi_ips.results import draw_tissue
from wsi_ips.slides import SlideReader, read_thumbnail
from wsi_ips.tiles import TileIndex, build_index
from wsi_ips.tiles.interop import imported_index, read_foreign
from wsi_ips.tissue import look_of, segment_tissue


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
    """Segment, lay the grid, measure and draw.

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
        Its annotation cannot be used.
    """
    regions = read_asap(record.annotation) if record.annotation else None
    pyramid = reader.info.pyramid
    thumbnail, mpp = read_thumbnail(reader, recipe.tissue.mpp)
    mask = segment_tissue(thumbnail, mpp=mpp, px0_size=pyramid.size_px0, **recipe.tissue.model_dump(exclude={"mpp"}))
    lay_tiles = (
        partial(imported_index, read_foreign(record.coordinates))
        if record.coordinates
        else partial(build_index, stride_px=recipe.tiles.stride, min_tissue_fraction=recipe.tiles.min_tissue_fraction)
    )
    index = lay_tiles(
        info=reader.info,
        mask=mask,
        slide_id=record.slide_id,
        target_mpp=recipe.tiles.mpp,
        patch_px=recipe.tiles.patch_px,
        tumour_region=None if regions is None else regions.tumour,
        slide_identity=slide_identity,
        fingerprint=fingerprint,
    )
    picture = draw_tissue(
        thumbnail,
        mask.mask,
        index.boxes_px0,
        px0_size=pyramid.size_px0,
        caption=f"{record.slide_id} · {len(index)} tiles · {mask.method}",
    )
    png = io.BytesIO()
    picture.save(png, "PNG")
    area_mm2 = mask.area_um2(pyramid.mpp) / 1e6
    row = {
        "state": "ok" if len(index) else "empty",
        "reason": "" if len(index) else _why_empty(area_mm2, recipe.tiles.min_tissue_fraction),
        "reader": index.reader,
        "mpp": round(pyramid.mpp.x, 5),
        "tiles": len(index),
        "tissue_mm2": round(area_mm2, 3),
    }
    return TiledSlide(replace(index, look=look_of(thumbnail)), row, {f"tissue/{record.slide_id}.png": png.getvalue()})


def _why_empty(area_mm2: float, min_tissue_fraction: float) -> str:
    if area_mm2 == 0:
        return "no tissue found; look at its picture, then lower `tissue.min_saturation` or `tissue.min_area_um2`"
    return (
        f"{area_mm2:.3f} mm² of tissue, but no tile holds {min_tissue_fraction:.0%} of it; lower "
        "`tiles.min_tissue_fraction`, or tile finer"
    )
