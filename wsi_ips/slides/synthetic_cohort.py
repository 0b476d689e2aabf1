"""A cohort of synthetic slides with annotations and manifest.

Only the tissue reveals the label: positive and negative slides come in pairs with the same stain, tissue area and sizes
of planted regions. On a negative slide all regions are benign follicles, on a positive slide some are tumour.
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
from wsi_ips.slides.synthetic_slide import write_synthetic_slide
from wsi_ips.slides.synthetic_textures import Stain
from wsi_ips.slides.synthetic_tissue import PlannedBlob, SyntheticSlide

PEN_COLOURS = ((40, 60, 150), (20, 110, 60), (35, 35, 40))


@dataclass(frozen=True)
class CohortPlan:
    """Plan of a cohort."""

    slides: int  # number of slides; every second one is positive
    size_px0: tuple[int, int]  # width and height of level 0
    mpp: float  # µm per level-0 pixel
    tissue_mm2: tuple[float, float]  # smallest and largest
    lesion_mm: tuple[float, float]  # smallest and largest diameter of planted regions
    split: tuple[float, float, float]  # shares of train, val and test
    pen: float  # share of slides with a pen mark
    blur: float  # share of slides with a region out of focus
    seed: int


def plan_slides(cohort: CohortPlan) -> list[tuple[SyntheticSlide, str]]:
    """Return the plans of all slides with their split, in the order of their ids; a pair is in one split."""
    rng = np.random.default_rng([cohort.seed, 1])
    numbers = iter((rng.permutation(cohort.slides) + 1).tolist())
    pairs = -(-cohort.slides // 2)
    shares = np.cumsum(cohort.split) / sum(cohort.split)
    plans = []
    for pair in range(pairs):
        part = ("train", "val", "test")[int(np.searchsorted(shares, (pair + 0.5) / pairs, "right"))]
        low, high = np.log(cohort.lesion_mm).tolist()
        diameters = np.exp(rng.uniform(low, high, int(rng.integers(1, 4))))
        area, stain = float(rng.uniform(*cohort.tissue_mm2)), _stain(rng)
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


def _stain(rng: Generator) -> Stain:
    """Draw a stain, pale to dark and reddish to bluish."""
    first, second = rng.normal(0, 0.02, (2, 3)).round(4).tolist()
    haematoxylin, eosin = float(np.exp(rng.normal(0, 0.12))), float(np.exp(rng.normal(0, 0.15)))
    return Stain(haematoxylin, eosin, (tuple(first), tuple(second)), tuple((242 - rng.integers(0, 9, 3)).tolist()))


def make_cohort(
    folder: Path,
    cohort: CohortPlan,
    *,
    classes: tuple[str, str] = ("normal", "tumor"),
    progress: Callable[[int, int], None] | None = None,
    workers: int = 2,
) -> Path:
    """Write ``slides/*.svs``, ``annotations/*.xml`` and ``manifest.csv``; return the path of the manifest.

    ``progress`` is called with the number of slides done and of all. ``workers`` does not change the files.
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
