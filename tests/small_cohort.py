"""A small cohort of synthetic slides on disk, and a recipe that trains on it in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from wsi_ips.pipeline.demo_slides import DEMO, make_slides
from wsi_ips.slides.synthetic_cohort import CohortPlan

SLIDES = replace(
    DEMO,
    slides=8,
    size_px0=(6144, 4096),
    tissue_mm2=(0.8, 1.2),
    lesion_mm=(0.4, 0.6),
    split=(0.5, 0.0, 0.5),
    pen=0.0,
    blur=0.0,
)
SMALL = {
    "name": "small",
    "output": "out",
    "manifest": "cohort/manifest.csv",
    "tissue": {"mpp": 16.0, "min_area_um2": 10_000},
    "tiles": {"mpp": 2.0, "patch_px": 64},
    "model": {"encoder": "resnet18-1", "memory_size": 4, "heads": 2, "key_width": 8},
    "training": {"epochs": 2, "start_steps": 1, "batch_slides": 2},
    "heatmap": {"mpp": 4.0},
}


def write_recipe(folder: Path, slides: CohortPlan = SLIDES, **changes: object) -> Path:
    """Make the slides where they are missing, and write the recipe; its path."""
    make_slides(folder / "cohort", slides, seed=5)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes), encoding="utf-8")
    return path
