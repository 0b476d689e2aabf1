"""Work on failed slides again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wsi_ips.errors import TileIndexError
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.slide_states import SlideState
from wsi_ips.pipeline.tile_stage import tile_stage
from wsi_ips.tiles.store import stored_row


class Retried(NamedTuple):
    """Slides that were tiled again, and slides that failed later and got back the state of their tiles."""

    tiled: tuple[str, ...]
    restored: tuple[str, ...]


def retry(run: Run, reason: str | None = None, names: Sequence[str] = ()) -> Retried:
    """Tile failed slides again; those that failed after tiling become ready for the stage that failed.

    Parameters
    ----------
    run
        The run.
    reason
        Only slides whose reason contains this text; case does not matter.
    names
        Only these slide_ids; empty = all failed slides.

    Raises
    ------
    ManifestError
        A name is not a slide_id of the manifest.
    """
    run.named(names)
    chosen = [
        row
        for row in run.states
        if row.state == "failed"
        and (not names or row.slide_id in names)
        and (reason or "").lower() in row.reason.lower()
    ]
    restored = tuple(row.slide_id for row in chosen if row.stage != "tile" and _restore(run, row))
    tiled = tuple(row.slide_id for row in chosen if row.slide_id not in restored)
    run.states.save()
    if tiled:
        tile_stage(run, only=tiled)
    return Retried(tiled, restored)


def _restore(run: Run, row: SlideState) -> bool:
    """Give a slide the state of its tiles; returns whether it has any."""
    try:
        stored = stored_row(run.folder.tiles, row.slide_id)
    except TileIndexError:
        return False
    if not stored:
        return False
    run.states.update(row.slide_id, stage="tile", attempts=1, traceback="", **stored)
    return True
