"""Failed slides again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wsi_ips.errors import ManifestError, TileIndexError
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.states import SlideState
from wsi_ips.pipeline.tiling.tile import tile_stage
from wsi_ips.tiles import stored_row


@dataclass(frozen=True)
class Retried:
    """What was tried again.

    Attributes
    ----------
    tiled
        Slides that had failed while they were tiled; worked on again.
    restored
        Slides that had failed later; their state is that of their tiles, and the next call of the stage tries them.
    """

    tiled: tuple[str, ...]
    restored: tuple[str, ...]


def retry(run: Run, reason: str | None = None, names: Sequence[str] = ()) -> Retried:
    """Work again on failed slides.

    Parameters
    ----------
    run
        The run.
    reason
        Only slides whose reason holds this text, in capitals or not.
    names
        Only these slides; none: all that failed.

    Raises
    ------
    ManifestError
        A name is no slide_id of the manifest.
    """
    unknown = sorted(set(names) - {record.slide_id for record in run.records})
    if unknown:
        raise ManifestError(
            f"manifest {run.recipe.manifest}: no slide_id {', '.join(unknown)}; see `wsi-ips status` for them"
        )
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
    """Give a slide the state that its tiles have; whether it has any."""
    try:
        stored = stored_row(run.folder.tiles, row.slide_id)
    except TileIndexError:
        return False
    if not stored:
        return False
    run.states.update(row.slide_id, stage="tile", attempts=1, traceback="", **stored)
    return True
