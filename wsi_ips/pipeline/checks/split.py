"""Make the parts of a cohort: patients and copies together, labels in proportion, centres held out where wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_ips.errors import ManifestError, SlideError
from wsi_ips.geometry import Box
from wsi_ips.manifest import SlideRecord, Splits
from wsi_ips.manifest.reading import read_manifest
from wsi_ips.manifest.splits import Member, fixed_parts, held_out_sites, joined_groups, k_folds
from wsi_ips.pipeline.checks.leakage import Kin, kin
from wsi_ips.pipeline.progress import Progress, Silent
from wsi_ips.slides import content_identity, open_slide, read_area
from wsi_ips.tissue import look_of

LOOK_PX = 512
"""Longest side of the thumbnail that is compared."""


@dataclass(frozen=True)
class SplitPlan:
    """What is wanted.

    Attributes
    ----------
    fractions
        Shares of train, val and test; of `folds`, only val counts, as the share of what is not tested.
    folds
        Number of folds; None for fixed parts.
    stratify
        Manifest columns kept in proportion; slides where the first is empty are in no part.
    by
        Manifest column of the centre: whole centres are tested.
    hold_out
        Centres that are tested; empty = chosen by share or fold.
    seed
        Of the shuffling.
    """

    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    folds: int | None = None
    stratify: tuple[str, ...] = ("label",)
    by: str | None = None
    hold_out: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class SplitOutcome:
    """Parts, and what is to be said of them.

    Attributes
    ----------
    splits
        The parts.
    strata
        Stratum by slide_id.
    kin
        Slides that were kept together for content or look; patients are not listed.
    left_out
        Slides in no part, for column `stratify[0]` is empty.
    without_patient
        Slides that count as a patient of their own, for column `patient_id` is empty.
    unseen
        Slides that could not be opened, with the reason: their content or look was not compared.
    """

    splits: Splits
    strata: dict[str, str]
    kin: tuple[Kin, ...]
    left_out: tuple[str, ...]
    without_patient: int
    unseen: dict[str, str]


def split_cohort(
    manifest: Path, plan: SplitPlan, *, look: bool = True, threads: int = 4, progress: Progress | None = None
) -> SplitOutcome:
    """Divide the slides of a manifest.

    Parameters
    ----------
    manifest
        CSV file; its own column ``split`` plays no part.
    plan
        What is wanted.
    look
        Open the slides, and keep copies and look-alikes together; without, only patients are.
    threads
        Slides opened at a time.
    progress
        Who watches.

    Raises
    ------
    ManifestError
        The manifest cannot be used, a column is missing, or there are too few patients or centres.
    """
    columns = [*plan.stratify, *([plan.by] if plan.by else [])]
    read = read_manifest(manifest, further_columns=columns, leaks=("patient", "content"))
    records, cells = read.records, read.further
    sites = {name: values[-1] for name, values in cells.items()} if plan.by else {}
    strata = {name: " · ".join(values[: len(plan.stratify)]) for name, values in cells.items()}
    left_out = [r.slide_id for r in records if plan.stratify and not cells[r.slide_id][0]]
    kept = [r for r in records if r.slide_id not in set(left_out)]
    if not kept:
        raise ManifestError(f"manifest {manifest}: column `{plan.stratify[0]}` is empty in all rows; fill it in")
    homeless = [r.slide_id for r in kept if plan.by and not sites[r.slide_id]]
    if homeless:
        raise ManifestError(
            f"manifest {manifest}: column `{plan.by}` is empty for {', '.join(homeless[:5])}; fill it in, for "
            "parts are made by it"
        )
    facts, unseen = _looked_at(kept, threads, progress or Silent()) if look else ({}, {})
    found = kin(kept, {n: f[0] for n, f in facts.items()}, {n: f[1] for n, f in facts.items()})
    groups = joined_groups([r.slide_id for r in kept], [(k.first, k.second) for k in found])
    members = [Member(r.slide_id, groups[r.slide_id], strata[r.slide_id], sites.get(r.slide_id, "")) for r in kept]
    return SplitOutcome(
        splits=_made(members, plan),
        strata=strata,
        kin=tuple(k for k in found if k.kind != "patient"),
        left_out=tuple(left_out),
        without_patient=sum(r.patient_id is None for r in kept),
        unseen=unseen,
    )


def _made(members: Sequence[Member], plan: SplitPlan) -> Splits:
    train, val, _ = plan.fractions
    val_share = val / (train + val) if train + val else 0.0
    if plan.hold_out:
        splits = held_out_sites(members, plan.hold_out, val_share, seed=plan.seed)
    elif plan.folds is not None:
        splits = k_folds(members, plan.folds, val_share, seed=plan.seed)
    else:
        splits = fixed_parts(members, plan.fractions, seed=plan.seed)
    settings = {**splits.settings, "stratify": list(plan.stratify), "by": plan.by}
    return replace(splits, settings=settings)


def _looked_at(
    records: Sequence[SlideRecord], threads: int, progress: Progress
) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """Content identity and look of each slide that can be read, and why others cannot."""
    facts, unseen = dict[str, tuple[str, str]](), dict[str, str]()
    with progress.stage("looking at slides", len(records), "slides") as advance, ThreadPoolExecutor(threads) as pool:
        for record, result in zip(records, pool.map(_fenced(_facts), records), strict=True):
            advance(1)
            if isinstance(result, Exception):
                unseen[record.slide_id] = str(result)
            else:
                facts[record.slide_id] = result
    return facts, unseen


def _fenced(
    work: Callable[[SlideRecord], tuple[str, str]],
) -> Callable[[SlideRecord], tuple[str, str] | SlideError | OSError]:
    def done(record: SlideRecord) -> tuple[str, str] | SlideError | OSError:
        try:
            return work(record)
        except (SlideError, OSError) as error:
            return error

    return done


def _facts(record: SlideRecord) -> tuple[str, str]:
    with open_slide(record.path, mpp_override=record.mpp or 1.0) as reader:  # the scale does not matter here
        size = reader.info.size_px0
        thumbnail, _ = read_area(reader, Box(0, 0, *size), max(size) / LOOK_PX, LOOK_PX)
    return content_identity(record.path), look_of(thumbnail)
