"""Divide a cohort into splits, and refuse leakage between them: compares the slides' content and appearance."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from wsi_ips.errors import ManifestError, SlideError
from wsi_ips.geometry import Box
from wsi_ips.labels import Leak
from wsi_ips.manifest.make_splits import SlideToSplit, SplitPlan, joined_groups, make_splits
from wsi_ips.manifest.manifest_csv import Manifest, read_manifest
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.manifest.splits import RelatedSlides, Splits, related_slides, require_no_leaks
from wsi_ips.pipeline.progress import Progress, Silent
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.pipeline.slide_states import StateTable
from wsi_ips.slides import content_identity, open_slide, read_area
from wsi_ips.tissue.perceptual_hash import look_alikes, look_of

__all__ = ["SplitOutcome", "SplitPlan", "require_no_leak", "split_cohort"]

THUMBNAIL_PX = 512  # longest side of the thumbnail that is compared


@dataclass(frozen=True)
class SplitOutcome:
    """Splits, and notes on them for the user."""

    splits: Splits
    strata: dict[str, str]  # stratum by slide_id
    related: tuple[RelatedSlides, ...]  # slides kept together for content or appearance; patients are not listed
    left_out: tuple[str, ...]  # slides in no split, because the first column of `stratify` is empty
    without_patient: int  # slides that count as separate patients, because column `patient_id` is empty
    unseen: dict[str, str]  # slides that could not be opened, with the reason: they were not compared


def split_cohort(
    manifest: Path, plan: SplitPlan, *, look: bool = True, threads: int = 4, progress: Progress | None = None
) -> SplitOutcome:
    """Divide the slides of a manifest, whose column ``split`` is ignored.

    With ``look``, slides are opened, ``threads`` at a time, and copies and look-alikes are kept together like patients.
    """
    columns = [*plan.stratify, *([plan.by] if plan.by else [])]
    read = read_manifest(manifest, further_columns=columns, leaks=("patient", "content"))
    kept = _with_strata(read, plan)
    contents, hashes, unseen = _compared(kept, threads, progress or Silent()) if look else ({}, {}, {})
    related = related_slides(kept, contents, look_alikes(hashes))
    groups = joined_groups([r.slide_id for r in kept], [(pair.first, pair.second) for pair in related])
    strata = {name: " · ".join(cells[: len(plan.stratify)]) for name, cells in read.further.items()}
    sites = {name: cells[-1] for name, cells in read.further.items()} if plan.by else {}
    slides = [SlideToSplit(r.slide_id, groups[r.slide_id], strata[r.slide_id], sites.get(r.slide_id, "")) for r in kept]
    names = {r.slide_id for r in kept}
    return SplitOutcome(
        splits=make_splits(slides, plan),
        strata=strata,
        related=tuple(pair for pair in related if pair.kind != "patient"),
        left_out=tuple(r.slide_id for r in read.records if r.slide_id not in names),
        without_patient=sum(r.patient_id is None for r in kept),
        unseen=unseen,
    )


def require_no_leak(slides: RunSlides, states: StateTable, allowed: Collection[Leak]) -> None:
    """Refuse tiled slides in different splits that are copies or look alike, unless the reason is ``allowed``."""
    records = [r for r in states.with_tiles(slides.records) if r.split is not None]
    headers = {r.slide_id: slides.header(r) for r in records}
    contents = {name: header.slide_identity for name, header in headers.items()}
    hashes = {name: header.look for name, header in headers.items()}
    require_no_leaks(records, contents, look_alikes(hashes), allowed)


def _with_strata(manifest: Manifest, plan: SplitPlan) -> list[SlideRecord]:
    """Return the slides that have a value to stratify by, and require a centre of each where splits are made by it."""
    cells = manifest.further
    kept = [r for r in manifest.records if not plan.stratify or cells[r.slide_id][0]]
    if not kept:
        raise ManifestError(f"manifest {manifest.path}: column `{plan.stratify[0]}` is empty in all rows; fill it in")
    without_site = [r.slide_id for r in kept if plan.by and not cells[r.slide_id][-1]]
    if without_site:
        raise ManifestError(
            f"manifest {manifest.path}: column `{plan.by}` is empty for {', '.join(without_site[:5])}; fill it in, as "
            "splits are made by it"
        )
    return kept


def _compared(
    records: Sequence[SlideRecord], threads: int, progress: Progress
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Return content identity and perceptual hash of each slide that can be read, and why others cannot."""
    contents, hashes, unseen = dict[str, str](), dict[str, str](), dict[str, str]()
    with progress.stage("looking at slides", len(records), "slides") as advance, ThreadPoolExecutor(threads) as pool:
        for record, found in zip(records, pool.map(_content_and_hash, records), strict=True):
            advance(1)
            if isinstance(found, Exception):
                unseen[record.slide_id] = str(found)
            else:
                contents[record.slide_id], hashes[record.slide_id] = found
    return contents, hashes, unseen


def _content_and_hash(record: SlideRecord) -> tuple[str, str] | SlideError | OSError:
    try:
        with open_slide(record.path, mpp_override=record.mpp or 1.0) as reader:  # any scale does: only pixels count
            size = reader.info.size_px0
            thumbnail, _ = read_area(reader, Box(0, 0, *size), max(size) / THUMBNAIL_PX, THUMBNAIL_PX)
        return content_identity(record.path), look_of(thumbnail)
    except (SlideError, OSError) as error:
        return error
