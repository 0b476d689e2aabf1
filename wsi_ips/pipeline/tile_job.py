"""Tile one slide, from its manifest row to its stored index: the job of a worker process."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

from wsi_ips.config import Recipe
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.tile_access import TileAccess
from wsi_ips.pipeline.tile_slide import tile_slide
from wsi_ips.provenance import atomic_write_bytes
from wsi_ips.slides import SlidePool, content_identity
from wsi_ips.tiles.store import stored_fingerprint, stored_row, write_index

TILE_JOB = f"{__name__}:tile_job"


@dataclass(frozen=True)
class SlideTask:
    """One slide and the recipe for it."""

    recipe: Recipe
    record: SlideRecord


@dataclass(frozen=True)
class Tiled:
    """Result of tiling a slide."""

    row: dict[str, Any]  # columns of the slide's row in the table of states
    worked: bool  # false where the index was up to date already


def tile_job(task: SlideTask) -> Tiled:
    """Tile a slide unless its stored index is up to date.

    The index is stored last, together with the slide's row for the table of states: when the process is killed after
    that, nothing is done again.
    """
    record, root = task.record, RunFolder.of(task.recipe).root
    with closing(SlidePool(max_open=1)) as pool:
        access = TileAccess.of(task.recipe, pool)
        wanted = access.fingerprint(record)
        if stored_fingerprint(access.store, record.slide_id) == wanted:
            return Tiled(stored_row(access.store, record.slide_id), worked=False)
        identity = content_identity(record.path, access.remote)
        with access.opener(record)() as reader:
            tiled = tile_slide(reader, record, task.recipe, slide_identity=identity, fingerprint=wanted)
        for name, content in tiled.files.items():
            atomic_write_bytes(root / name, content)
        write_index(access.store, tiled.index, tiled.row)
        return Tiled(tiled.row, worked=True)
