"""Stage ``tile``: tissue mask and tile index of every slide."""

from __future__ import annotations

from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor

from wsi_ips.manifest import SlideRecord
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.sheet import sheet_stage
from wsi_ips.pipeline.tile_slide import tile_slide
from wsi_ips.provenance import atomic_write_bytes
from wsi_ips.slides import content_identity
from wsi_ips.tiles import write_index


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
    sheet_stage(run)
    return len(due)


def _tile_fenced(run: Run, record: SlideRecord, advance: Callable[[int], None]) -> None:
    run.states.fence(record.slide_id, "tile", lambda: _tile_slide(run, record))
    advance(1)


def _tile_slide(run: Run, record: SlideRecord) -> None:
    """Tile one slide; what people look at is stored first, then the index, which says that it is done."""
    wanted = run.tiles_fingerprint(record)
    identity = content_identity(record.path, run.remote)
    with run.opener(record)() as reader:
        tiled = tile_slide(reader, record, run.recipe, slide_identity=identity, fingerprint=wanted)
    for name, content in tiled.files.items():
        atomic_write_bytes(run.folder.root / name, content)
    write_index(run.folder.tiles, tiled.index)
    run.states.update(record.slide_id, **tiled.row)
