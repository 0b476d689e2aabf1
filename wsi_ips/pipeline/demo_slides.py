"""Make the synthetic cohort of ``wsi-ips demo``, and of tests and benchmarks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wsi_ips.errors import RecipeError
from wsi_ips.pipeline.progress import Progress, Silent
from wsi_ips.provenance import atomic_write_json, fingerprint
from wsi_ips.slides.synthetic_cohort import CohortPlan, make_cohort
from wsi_ips.slides.synthetic_slide import SCHEMA_VERSION

RECORD_NAME = "cohort.json"
DEMO = CohortPlan(
    slides=60,
    size_px0=(20_480, 14_336),  # 10.2 x 7.2 mm
    mpp=0.5,
    tissue_mm2=(4.0, 7.0),
    lesion_mm=(0.8, 1.8),
    split=(0.5, 0.1, 0.4),
    pen=0.1,
    blur=0.1,
    seed=0,
)  # for other slides, `dataclasses.replace` some of it


def make_slides(
    folder: Path,
    settings: CohortPlan = DEMO,
    seed: int = 0,
    progress: Progress | None = None,
    classes: tuple[str, str] = ("normal", "tumor"),
) -> Path:
    """Write synthetic slides, annotations and a manifest, unless the same files exist, and return the manifest's path.

    The same seed makes the same files; ``classes`` are the labels of negative and of positive slides.
    """
    plan, manifest = replace(settings, seed=seed), folder / "manifest.csv"
    wanted = fingerprint("synthetic cohort", SCHEMA_VERSION, asdict(plan), classes)
    record = folder / RECORD_NAME
    if (
        manifest.exists()
        and record.exists()
        and json.loads(record.read_text(encoding="utf-8"))["fingerprint"] == wanted
    ):
        return manifest
    with (progress or Silent()).stage("synthetic slides", plan.slides, "slides") as advance:
        make_cohort(
            folder, plan, classes=classes, progress=lambda _done, _total: advance(1), workers=os.cpu_count() or 1
        )
    atomic_write_json(record, {"fingerprint": wanted})
    return manifest


def changed_plan(values: Mapping[str, Any]) -> CohortPlan:
    """Return the demo's plan with other values, checked as those of a recipe are."""
    unknown = values.keys() - asdict(DEMO).keys()
    if unknown:
        raise RecipeError(f"`{min(unknown)}` is not a property of the slides; they have {', '.join(asdict(DEMO))}")
    try:
        return TypeAdapter(CohortPlan).validate_python(asdict(DEMO) | dict(values))
    except ValidationError as error:
        raise RecipeError(f"properties of the slides: {error}") from error


def is_synthetic(manifest: Path) -> bool:
    """Return whether :func:`make_slides` wrote a manifest."""
    return (manifest.parent / RECORD_NAME).exists()
