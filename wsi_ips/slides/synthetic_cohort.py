"""A cohort of synthetic slides with annotations and manifest.

The label cannot be read from the side: positive and negative slides come in pairs of one stain, tissue area
and one law of planted regions; on a negative all regions are benign follicles, on a positive some are
tumour.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.random import Generator

from wsi_ips.annotations import write_asap
from wsi_ips.geometry import Size
from wsi_ips.provenance import atomic_path
from wsi_ips.slides.histology import Stain
from wsi_ips.slides.layout import PlannedBlob
from wsi_ips.slides.synthetic import PEN_COLOURS, SyntheticSlide, write_synthetic_slide


@dataclass(frozen=True)
class CohortPlan:
    """What a cohort is made of.

    Attributes
    ----------
    slides
        Number of slides; every second one is positive.
    size_px0
        Width and height of level 0.
    mpp
        µm per level-0 pixel.
    tissue_mm2, lesion_mm
        Smallest and largest tissue area, and diameter of planted regions.
    split
        Shares of train, val and test.
    pen, blur
        Share of slides with a pen mark, and with a region out of focus.
    seed
        Seed of everything.
    """

    slides: int
    size_px0: tuple[int, int]
    mpp: float
    tissue_mm2: tuple[float, float]
    lesion_mm: tuple[float, float]
    split: tuple[float, float, float]
    pen: float
    blur: float
    seed: int


def plan_slides(cohort: CohortPlan) -> list[tuple[SyntheticSlide, str]]:
    """Plans of all slides with their split, in the order of their ids.

    Slides come in pairs of one positive and one negative with the same stain, area and planted sizes;
    a pair lies in one split.
    """
    rng = np.random.default_rng([cohort.seed, 1])
    numbers = iter((rng.permutation(cohort.slides) + 1).tolist())
    pairs = -(-cohort.slides // 2)
    shares = np.cumsum(cohort.split) / sum(cohort.split)
    plans = []
    for pair in range(pairs):
        part = ("train", "val", "test")[int(np.searchsorted(shares, (pair + 0.5) / pairs, "right"))]
        low, high = np.log(cohort.lesion_mm).tolist()
        diameters = np.exp(rng.uniform(low, high, int(rng.integers(1, 4))))
        area, stain = float(rng.uniform(*cohort.tissue_mm2)), draw_stain(rng)
        for label in (1, 0)[: 2 if 2 * pair + 1 < cohort.slides else 1]:
            malignant = int(rng.integers(1, len(diameters) + 1)) if label else 0
            kinds = rng.permutation(["tumour"] * malignant + ["follicle"] * (len(diameters) - malignant))
            number = next(numbers)
            plan = SyntheticSlide(
                slide_id=f"slide_{number:03d}",
                seed=int(rng.integers(2**31)),
                size_px0=Size(*cohort.size_px0),
                mpp=cohort.mpp,
                tissue_mm2=area,
                blobs=tuple(PlannedBlob(k, float(d)) for k, d in zip(kinds.tolist(), diameters, strict=True)),
                stain=stain,
                bank=2 * cohort.seed + (part != "train"),
                pen=PEN_COLOURS[int(rng.integers(len(PEN_COLOURS)))] if rng.random() < cohort.pen else None,
                blur=bool(rng.random() < cohort.blur),
            )
            plans.append((plan, part))
    return sorted(plans, key=lambda entry: entry[0].slide_id)


def draw_stain(rng: Generator) -> Stain:
    """Pale to dark, reddish to bluish."""
    hue = rng.normal(0, 0.02, (2, 3)).round(4)
    return Stain(
        haematoxylin=float(np.exp(rng.normal(0, 0.12))),
        eosin=float(np.exp(rng.normal(0, 0.15))),
        hue=(tuple(hue[0].tolist()), tuple(hue[1].tolist())),
        glass=tuple((242 - rng.integers(0, 9, 3)).tolist()),
    )


def make_cohort(
    folder: Path,
    cohort: CohortPlan,
    *,
    classes: tuple[str, str] = ("normal", "tumor"),
    progress: Callable[[int, int], None] | None = None,
    workers: int = 2,
) -> Path:
    """Write a cohort: ``slides/*.svs``, ``annotations/*.xml``, ``manifest.csv``.

    Files depend on the plan only, not on ``workers``.

    Parameters
    ----------
    folder
        Where to write.
    cohort
        What to make.
    classes
        Label of negative and of positive slides.
    progress
        Called with the number of slides done and in all.
    workers
        Processes.

    Returns
    -------
    pathlib.Path
        The manifest.
    """
    plans = plan_slides(cohort)
    for name in ("slides", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    jobs = [(plan, folder) for plan, _ in plans]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(_write_files, jobs), 1):
            if progress:
                progress(done, len(plans))
    rows = [_manifest_row(plan, part, classes) for plan, part in plans]
    with atomic_path(folder / "manifest.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")
    return folder / "manifest.csv"


def _write_files(job: tuple[SyntheticSlide, Path]) -> None:
    plan, folder = job
    lesions = write_synthetic_slide(plan, folder / "slides" / f"{plan.slide_id}.svs")
    if plan.label:
        write_asap(folder / "annotations" / f"{plan.slide_id}.xml", lesions)


def _manifest_row(plan: SyntheticSlide, part: str, classes: tuple[str, str]) -> dict[str, object]:
    tumours = [blob.diameter_mm for blob in plan.blobs if blob.kind == "tumour"]
    return {
        "slide_id": plan.slide_id,
        "path": f"slides/{plan.slide_id}.svs",
        "label": classes[plan.label],
        "split": part,
        "annotation": f"annotations/{plan.slide_id}.xml" if plan.label else "",
        "lesion_mm": round(max(tumours), 3) if tumours else "",
    }
