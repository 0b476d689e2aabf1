"""Tiling one slide from its row of the manifest to its stored index: what a process of the cluster is told to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wsi_ips.config import Recipe
from wsi_ips.manifest import SlideRecord
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.tiling.slide import tile_slide
from wsi_ips.provenance import atomic_write_bytes
from wsi_ips.slides import content_identity
from wsi_ips.tiles import read_index, stored_fingerprint, stored_row, write_index

TILE_JOB = f"{__name__}:tile_job"


@dataclass(frozen=True)
class SlideTask:
    """One slide and the recipe for it."""

    recipe: Recipe
    record: SlideRecord


@dataclass(frozen=True)
class Tiled:
    """What came of it.

    Attributes
    ----------
    row
        Columns of the slide's row in the table of states.
    megapixels
        Size of level 0.
    worked
        False where the index was there already, up to date.
    """

    row: dict[str, Any]
    megapixels: float
    worked: bool


def tile_job(task: SlideTask) -> Tiled:
    """Tile a slide unless its stored index is up to date.

    The index is stored last, with the row that goes into the table of states: whoever is killed after that, nothing is
    done again.
    """
    record = task.record
    with Run.of_slide(task.recipe, record) as run:
        wanted = run.tiles_fingerprint(record)
        if stored_fingerprint(run.folder.tiles, record.slide_id) == wanted:
            index = read_index(run.folder.tiles, record.slide_id)
            return Tiled(stored_row(run.folder.tiles, record.slide_id), _megapixels(index.size_px0), worked=False)
        identity = content_identity(record.path, run.remote)
        with run.opener(record)() as reader:
            tiled = tile_slide(reader, record, run.recipe, slide_identity=identity, fingerprint=wanted)
        for name, content in tiled.files.items():
            atomic_write_bytes(run.folder.root / name, content)
        write_index(run.folder.tiles, tiled.index, tiled.row)
        return Tiled(tiled.row, _megapixels(tiled.index.size_px0), worked=True)


def _megapixels(size_px0: tuple[int, int]) -> float:
    return size_px0[0] * size_px0[1] / 1e6
