"""Verify what a run has stored: tile indexes against their slides, predictions against their stored tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_ips.cluster.jobs import JobOutcome, spread
from wsi_ips.cluster.process import Job
from wsi_ips.config import ComputeSection
from wsi_ips.errors import CheckpointError, ScoresError
from wsi_ips.inference.slide_scores import SlideScores, read_scores
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint_card import CARD_NAME
from wsi_ips.pipeline.progress import Progress
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.pipeline.slide_predictions import RunPredictions
from wsi_ips.pipeline.slide_states import WITHOUT_TILES, StateTable
from wsi_ips.slides import content_identity
from wsi_ips.tiles.index import geometry_mismatches
from wsi_ips.tiles.store import slide_ids, stored_row

if TYPE_CHECKING:
    from wsi_ips.inference.slide_prediction import Recomputed

VERIFY_JOB = f"{__name__}:verify_job"
TOLERANCE = 1e-4  # of a probability; the same network rounds differently on another device


@dataclass(frozen=True)
class Mismatch:
    """A mismatch, and what to do about it."""

    slide_id: str
    what: str


@dataclass(frozen=True)
class Verified:
    """Number of things checked, what was found, and the largest difference of a recomputed probability."""

    checked: int
    mismatches: tuple[Mismatch, ...]
    off: float = 0.0


def verify_tiles(slides: RunSlides, states: StateTable, compute: ComputeSection, progress: Progress) -> Verified:
    """Verify the tile index of every slide that is ``ok``, ``empty``, ``unsuited`` or failed after tiling."""
    records = {record.slide_id: record for record in slides.records if states.is_done(record.slide_id)}
    jobs = [Job(name, VERIFY_JOB, slides.alone(record)) for name, record in records.items()]
    found: dict[str, list[str]] = {}
    if jobs:
        with (
            progress.stage("verify tiles", len(jobs), "slides") as advance,
            spread(compute, jobs) as outcomes,
        ):
            for outcome in outcomes:
                if outcome is not None:
                    found[outcome.job.name] = list(_outcome_mismatches(states, outcome))
                    advance(1)
    mismatches = [Mismatch(name, what) for name in records for what in found.get(name, [])]
    strays = sorted(set(slide_ids(slides.store)) - {record.slide_id for record in slides.records})
    mismatches += [Mismatch(name, "stored, but no row of the manifest names it; delete its entry") for name in strays]
    return Verified(len(jobs), tuple(mismatches))


def verify_job(slide: RunSlides) -> tuple[list[str], int]:
    """Verify the index of one slide in its own process, and return what is wrong and the number of tiles."""
    (record,) = slide.records
    with slide:
        index = slide.index(record)
        found = list(geometry_mismatches(index))
        row = stored_row(slide.store, record.slide_id)
        if row.get("tiles", len(index)) != len(index):
            found.append(f"holds {len(index)} tiles, its own row says {row['tiles']}; run `wsi-ips tile`")
        if index.slide_identity != content_identity(record.path, slide.remote):
            found.append("the slide's file is not the one that was tiled; run `wsi-ips tile`")
        elif index.fingerprint != slide.tiles_fingerprint(record):
            found.append("made by another recipe, scale or annotation; run `wsi-ips tile`")
        else:
            with slide.opener(record)() as reader:
                stored = (index.size_px0, index.mpp, index.bounds, index.reader)
                if stored != (reader.info.size_px0, reader.info.mpp, reader.info.bounds, reader.info.reader):
                    found.append("size, scale, bounds or reader are not those of the slide; delete it and tile again")
        return found, len(index)


def verify_predictions(predictions: RunPredictions) -> Verified:
    """Compute every up-to-date prediction again from its stored tiles; on the CPU, without reading a slide."""
    stored = predictions.folder.scores
    if not stored.exists() or not (predictions.checkpoint / CARD_NAME).exists():
        return Verified(0, ())
    from wsi_ips.model.checkpoint import load_checkpoint

    try:
        records, (net, _) = predictions.predicted(), load_checkpoint(predictions.checkpoint)
    except CheckpointError as error:
        return Verified(0, (Mismatch("(model)", str(error)),))
    from wsi_ips.inference.slide_prediction import recompute

    checked, largest, found = 0, 0.0, list[Mismatch]()
    with predictions.progress.stage("verify predictions", len(records), "slides") as advance:
        for record in records:
            advance(1)
            try:
                scores = read_scores(stored, record.slide_id)
                again = recompute(scores, net)
            except ScoresError as error:
                found.append(Mismatch(record.slide_id, str(error)))
                continue
            checked, largest = checked + 1, max(largest, again.off)
            found += [Mismatch(record.slide_id, what) for what in _score_mismatches(predictions, record, scores, again)]
    return Verified(checked, tuple(found), largest)


def _outcome_mismatches(states: StateTable, outcome: JobOutcome) -> Iterator[str]:
    if outcome.result.failure:
        yield outcome.result.failure.reason
        return
    found, tiles = outcome.result.value
    yield from found
    row = states[outcome.job.name]
    if row.tiles != tiles or (row.state in WITHOUT_TILES) != (tiles == 0):
        yield f"the states say {row.state} with {row.tiles} tiles, the index holds {tiles}; run `wsi-ips tile`"


def _score_mismatches(
    predictions: RunPredictions, record: SlideRecord, scores: SlideScores, again: Recomputed
) -> Iterator[str]:
    advice = f"delete {predictions.folder.scores / record.slide_id} and run `wsi-ips predict`"
    tiles = len(predictions.slides.index(record))
    if len(scores.attention_logits) != tiles:
        yield f"{len(scores.attention_logits)} scores for {tiles} tiles; {advice}"
    if again.off > TOLERANCE:
        yield f"its probability differs by {again.off:.2g} from that of its stored tiles; {advice}"
    if not again.kept_are_best:
        yield f"the kept tiles are not those with the highest stored attention; {advice}"
