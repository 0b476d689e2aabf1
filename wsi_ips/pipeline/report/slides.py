"""Slides of the report: who stands in the worklist, and the pictures, as many as the page can carry."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from wsi_ips.inference import SlideScores
from wsi_ips.manifest import SlideRecord
from wsi_ips.pipeline.run import Run
from wsi_ips.results import SlideEntry, TopTile
from wsi_ips.results.handoff.pictures import GALLERY_TILES
from wsi_ips.results.report import MOST_ALARMS
from wsi_ips.results.report_data import Outcome
from wsi_ips.tiles import TileIndex, read_tiles

PICTURE_PX, TILE_SHOWN_PX, THUMBNAIL_PX = 1000, 112, (96, 72)
MOST_PICTURES = 60
"""Slides with pictures on the page, those that were called wrongly first; the others have theirs in the run folder."""
PICTURE_BYTES = 15_000_000
"""All large pictures together; as text on the page they take a third more."""


def slide_entries(
    run: Run, scores: Mapping[str, SlideScores], *, threshold: float | None, split: str
) -> tuple[SlideEntry, ...]:
    """All slides of the manifest, in its order.

    Parameters
    ----------
    run, scores
        Scores of the predicted slides.
    threshold
        Slides from it on count as called positive; None where nothing is measured.
    split
        Of its slides it is told which were called wrongly.
    """
    entries = {r.slide_id: _entry(run, r, scores.get(r.slide_id), threshold, split) for r in run.records}
    records = {r.slide_id: r for r in run.records}
    room = PICTURE_BYTES
    chosen = _worth_pictures(list(entries.values()), run)
    with run.progress.stage("report", len(chosen), "slides") as advance:
        for name in chosen:
            pictured = _with_pictures(run, records[name], entries[name], scores[name])
            size = sum(map(len, pictured.overlays)) + sum(len(tile.jpeg) for tile in pictured.top)
            if size <= room:
                entries[name] = pictured
                room -= size
            advance(1)
    return tuple(entries.values())


def _worth_pictures(entries: Sequence[SlideEntry], run: Run) -> list[str]:
    """Missed slides, false alarms, then the most suspicious; those that are drawn."""
    order = sorted((e for e in entries if e.probability is not None), key=lambda e: -(e.probability or 0.0))
    missed = [e for e in order if e.outcome == "missed"][::-1]
    alarms = [e for e in order if e.outcome == "false alarm"][:MOST_ALARMS]
    first = [*missed, *alarms]
    names = [e.slide_id for e in (*first, *[e for e in order if not e.outcome])]
    maps = run.recipe.heatmap.maps
    return [n for n in names if all(run.folder.overlay(n, kind).exists() for kind in maps)][:MOST_PICTURES]


def _entry(
    run: Run, record: SlideRecord, scores: SlideScores | None, threshold: float | None, split: str
) -> SlideEntry:
    state, task, truth = run.states[record.slide_id], run.recipe.labels.tasks[0], run.truth(record)
    probability = scores.probability[-1] if scores else None
    called = scores.label if scores else ""
    positive = None if truth is None else bool(task.is_positive(truth))
    outcome: Outcome = ""
    if threshold is not None and probability is not None and positive is not None and record.split == split:
        wrong = positive != (probability >= threshold)
        outcome = ("missed" if positive else "false alarm") if wrong else ""
    return SlideEntry(
        slide_id=record.slide_id,
        state=state.state,
        reason=state.reason,
        label=task.text(truth) or "",
        split=record.split or "",
        probability=probability,
        predicted=called,
        tiles=state.tiles,
        tissue_mm2=state.tissue_mm2,
        thumbnail=_thumbnail(run, record) if scores else None,
        outcome=outcome,
        positive=positive,
    )


def _with_pictures(run: Run, record: SlideRecord, entry: SlideEntry, scores: SlideScores) -> SlideEntry:
    index = run.index(record)
    return replace(
        entry,
        overlays=tuple(_picture(run, record, kind) for kind in run.recipe.heatmap.maps),
        top=_top_tiles(run, record, scores, index),
        tile_um=index.plan.patch_size.width * index.plan.effective_mpp.x,
    )


def _picture(run: Run, record: SlideRecord, kind: str) -> bytes:
    image = Image.open(run.folder.overlay(record.slide_id, kind)).convert("RGB")
    image.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    return _jpeg(image, 80)


def _thumbnail(run: Run, record: SlideRecord) -> bytes | None:
    """The main map without its frame, else the slide as tiling saw it; small."""
    path = run.folder.overlay(record.slide_id, run.recipe.heatmap.maps[0])
    plain = run.folder.tissue / f"{record.slide_id}.jpg"
    if path.exists() and path.with_suffix(".json").exists():
        x, y, width, height = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["map_box_px"]
        with Image.open(path) as page:
            image = page.crop((x, y, x + width, y + height)).convert("RGB")
    elif plain.exists():
        with Image.open(plain) as both:  # slide and mask side by side, 8 px apart
            image = both.crop((0, 0, max(1, (both.width - 8) // 2), both.height)).convert("RGB")
    else:
        return None
    image.thumbnail(THUMBNAIL_PX, Image.Resampling.BOX)
    return _jpeg(image, 70)


def _top_tiles(run: Run, record: SlideRecord, scores: SlideScores, index: TileIndex) -> tuple[TopTile, ...]:
    """The tiles of the highest single-tile probability, best first."""
    best = np.argsort(-scores.positive_probability, kind="stable")[:GALLERY_TILES]
    pixels = run.states.fence(
        record.slide_id, "heatmap", lambda: read_tiles(run.tiles(record).only(best.astype(np.int32)))
    )
    if pixels is None:
        return ()
    return tuple(
        TopTile(
            jpeg=_jpeg(Image.fromarray(patch).resize((TILE_SHOWN_PX, TILE_SHOWN_PX), Image.Resampling.BICUBIC), 80),
            probability=float(scores.positive_probability[tile]),
            x_px0=int(index.x[tile]),
            y_px0=int(index.y[tile]),
        )
        for tile, patch in zip(best, pixels, strict=True)
    )


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
