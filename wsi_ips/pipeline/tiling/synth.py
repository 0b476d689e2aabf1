"""Stage ``synth``: the cohort that a recipe makes itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

from wsi_ips.config import Recipe, SynthSection
from wsi_ips.pipeline.progress import Progress
from wsi_ips.provenance import atomic_write_json, fingerprint
from wsi_ips.slides.synthetic import SCHEMA_VERSION
from wsi_ips.slides.synthetic_cohort import CohortPlan, make_cohort

RECORD_NAME = "cohort.json"


def synth_stage(recipe: Recipe, progress: Progress) -> bool:
    """Make the recipe's synthetic cohort unless it is there already; whether anything was done."""
    if recipe.synth is None:
        return False
    section = recipe.synth
    if section.seed is None:
        section = section.model_copy(update={"seed": recipe.seed})
    folder = recipe.manifest.parent
    if recipe.manifest.exists() and _made_from(folder) == _wanted(section, recipe.labels.classes):
        return False
    make_slides(folder, section, progress=progress, classes=recipe.labels.classes)
    return True


def make_slides(
    folder: Path,
    section: SynthSection,
    *,
    progress: Progress,
    classes: tuple[str, ...] = ("normal", "tumor"),
) -> Path:
    """Write a synthetic cohort; the path of its manifest."""
    with progress.stage("synthetic slides", section.slides, "slides") as advance:
        manifest = make_cohort(
            folder,
            CohortPlan(**section.model_dump() | {"seed": section.seed or 0}),
            classes=(classes[0], classes[-1]),
            progress=lambda _done, _total: advance(1),
            workers=os.cpu_count() or 1,
        )
    atomic_write_json(folder / RECORD_NAME, {"fingerprint": _wanted(section, classes)})
    return manifest


def _wanted(section: SynthSection, classes: tuple[str, ...]) -> str:
    return fingerprint("synth", SCHEMA_VERSION, section, classes)


def _made_from(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError):
        return None
