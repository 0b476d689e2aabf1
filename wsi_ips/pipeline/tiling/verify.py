"""Check what is stored against the slides: every index that the table of states calls done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wsi_ips.cluster import Job, JobOutcome
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.spread import spread
from wsi_ips.pipeline.tiling.job import SlideTask
from wsi_ips.slides import content_identity
from wsi_ips.tiles import TileIndex, read_index, slide_ids, stored_row

VERIFY_JOB = f"{__name__}:verify_job"


@dataclass(frozen=True)
class Mismatch:
    """Something that is not as it should be, and what to do."""

    slide_id: str
    what: str


def verify(run: Run) -> tuple[int, list[Mismatch]]:
    """Check all slides that are ``ok``, ``empty`` or failed after tiling.

    Returns
    -------
    int, list of Mismatch
        Slides checked, and what was found, in the order of the manifest; strays of the store last.
    """
    done = [record for record in run.records if run.is_done(record)]
    records = {record.slide_id: record for record in done}
    jobs = [Job(name, VERIFY_JOB, SlideTask(run.recipe, record)) for name, record in records.items()]
    found: dict[str, list[str]] = {}
    if jobs:
        with (
            run.progress.stage("verify", len(jobs), "slides") as advance,
            spread(run.recipe.compute, jobs) as work,
        ):
            for outcome in work.outcomes:
                if outcome is not None:
                    found[outcome.job.name] = [*_told(outcome), *_against_state(run, outcome)]
                    advance(1)
    strays = sorted(set(slide_ids(run.folder.tiles)) - {record.slide_id for record in run.records})
    mismatches = [Mismatch(name, what) for name in records for what in found.get(name, [])]
    mismatches += [Mismatch(name, "stored, but no row of the manifest names it; delete its entry") for name in strays]
    return len(jobs), mismatches


def verify_job(task: SlideTask) -> tuple[list[str], int]:
    """What is wrong with one slide's index, and the tiles it has; in a process of its own."""
    record = task.record
    with Run.of_slide(task.recipe, record) as run:
        index = read_index(run.folder.tiles, record.slide_id)
        found = list(geometry_mismatches(index))
        row = stored_row(run.folder.tiles, record.slide_id)
        if row.get("tiles", len(index)) != len(index):
            found.append(f"holds {len(index)} tiles, its own row says {row['tiles']}; run `wsi-ips tile`")
        if index.slide_identity != content_identity(record.path, run.remote):
            found.append("the slide's file is not the one that was tiled; run `wsi-ips tile`")
        elif index.fingerprint != run.tiles_fingerprint(record):
            found.append("made by another recipe, scale or annotation; run `wsi-ips tile`")
        else:
            with run.opener(record)() as reader:
                stored = (index.size_px0, index.mpp, index.bounds, index.reader)
                if stored != (reader.info.size_px0, reader.info.mpp, reader.info.bounds, reader.info.reader):
                    found.append("size, scale, bounds or reader are not those of the slide; delete it and tile again")
        return found, len(index)


def geometry_mismatches(index: TileIndex) -> Iterator[str]:
    """What in an index contradicts itself; tiles lie on the grid, within the slide, in order, once each."""
    advice = "delete it and run `wsi-ips tile`"
    order = np.lexsort((index.x, index.y))
    if not np.array_equal(order, np.arange(len(index))):
        yield f"tiles are not ordered by y, then x; {advice}"
    if len(np.unique(np.stack([index.x, index.y]), axis=1).T) != len(index):
        yield f"a tile stands there twice; {advice}"
    boxes, bounds = index.boxes_px0, index.bounds
    ends = boxes[:, :2] + boxes[:, 2:]
    # The last pixel may be rounded up where the footprint is no whole number of level-0 pixels.
    outside = (boxes[:, :2] < bounds[:2]).any(1) | (ends > np.add(bounds[:2], bounds[2:]) + 1).any(1)
    if outside.any():
        yield f"{outside.sum()} tiles lie outside the scanned part of the slide; {advice}"
    steps = (boxes[:, :2] - bounds[:2]) / index.stride_px0
    off = (np.abs(steps - np.round(steps)) * index.stride_px0 > 1).any(1)
    if off.any():
        yield f"{off.sum()} tiles lie beside the grid; {advice}"
    for name, values in (("tissue_fraction", index.tissue_fraction), ("tumour_fraction", index.tumour_fraction)):
        if values is not None and len(values) and not (values.min() >= 0 and values.max() <= 1 + 1e-6):
            yield f"{name} is not between 0 and 1; {advice}"


def _told(outcome: JobOutcome) -> Sequence[str]:
    failure = outcome.result.failure
    return [failure.reason] if failure else list(outcome.result.value[0])


def _against_state(run: Run, outcome: JobOutcome) -> Iterator[str]:
    """What the table of states says otherwise than the index."""
    if outcome.result.failure:
        return
    row, tiles = run.states[outcome.job.name], outcome.result.value[1]
    if row.tiles != tiles or (row.state == "empty") != (tiles == 0):
        yield f"the states say {row.state} with {row.tiles} tiles, the index holds {tiles}; run `wsi-ips tile`"
