"""Stage ``tile``: tissue mask and tile index of every slide."""

from __future__ import annotations

from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor

from wsi_ips.annotations import read_asap
from wsi_ips.manifest import SlideRecord
from wsi_ips.pipeline.run import Run
from wsi_ips.provenance import atomic_path
from wsi_ips.results import draw_tissue
from wsi_ips.slides import content_identity, read_thumbnail
from wsi_ips.tiles import build_index, write_index
from wsi_ips.tissue import segment_tissue


def tile_stage(run: Run, only: Container[str] | None = None) -> int:
    """Tile all slides (or only some, by slide_id) whose index is not up to date; the number worked on."""
    records = [r for r in run.records if only is None or r.slide_id in only]
    due = [record for record in records if not run.is_tiled(record)]
    if not due:
        return 0
    with (
        run.progress.stage("tissue and tiles", len(due), "slides") as advance,
        ThreadPoolExecutor(run.recipe.compute.readers) as pool,
    ):
        for _ in pool.map(lambda record: _tile_fenced(run, record, advance), due):
            pass
    run.states.save()
    return len(due)


def _tile_fenced(run: Run, record: SlideRecord, advance: Callable[[int], None]) -> None:
    run.states.fence(record.slide_id, "tile", lambda: _tile_slide(run, record))
    advance(1)


def _tile_slide(run: Run, record: SlideRecord) -> None:
    """Segment, grid, store; then the slide is ``ok`` or ``empty``."""
    recipe = run.recipe
    wanted = run.tiles_fingerprint(record)
    regions = read_asap(record.annotation) if record.annotation else None
    with run.opener(record)() as reader:
        pyramid = reader.info.pyramid
        thumbnail, mpp = read_thumbnail(reader, recipe.tissue.mpp)
        mask = segment_tissue(
            thumbnail, mpp=mpp, px0_size=pyramid.size_px0, **recipe.tissue.model_dump(exclude={"mpp"})
        )
        index = build_index(
            reader.info,
            mask,
            slide_id=record.slide_id,
            target_mpp=recipe.tiles.mpp,
            patch_px=recipe.tiles.patch_px,
            stride_px=recipe.tiles.stride,
            min_tissue_fraction=recipe.tiles.min_tissue_fraction,
            tumour_region=None if regions is None else regions.tumour,
            slide_identity=content_identity(record.path, run.remote),
            fingerprint=wanted,
        )
    picture = draw_tissue(
        thumbnail,
        mask.mask,
        index.boxes_px0,
        px0_size=pyramid.size_px0,
        caption=f"{record.slide_id} · {len(index)} tiles · {mask.method}",
    )
    with atomic_path(run.folder.tissue_picture(record.slide_id)) as temporary:
        picture.save(temporary, "PNG")
    write_index(run.folder.tiles, index)
    area_mm2 = mask.area_um2(pyramid.mpp) / 1e6
    run.states.update(
        record.slide_id,
        state="ok" if len(index) else "empty",
        reason="" if len(index) else _why_empty(area_mm2, recipe.tiles.min_tissue_fraction),
        reader=index.reader,
        mpp=round(pyramid.mpp.x, 5),
        tiles=len(index),
        tissue_mm2=round(area_mm2, 3),
    )


def _why_empty(area_mm2: float, min_tissue_fraction: float) -> str:
    if area_mm2 == 0:
        return "no tissue found; look at its picture, then lower `tissue.min_saturation` or `tissue.min_area_um2`"
    return (
        f"{area_mm2:.3f} mm² of tissue, but no tile holds {min_tissue_fraction:.0%} of it; lower "
        "`tiles.min_tissue_fraction`, or tile finer"
    )
