"""Small cohorts of synthetic slides on disk, and recipes that train on them in seconds."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import yaml

from tests.pyramids import write_pyramid
from tests.tissue.test_perceptual_hash import node
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

NODE_SIZE = (840, 600)  # width and height of the slides of `write_nodes`


def write_recipe(folder: Path, slides: CohortPlan = SLIDES, **changes: object) -> Path:
    """Make the slides where they are missing, and write the recipe; its path."""
    make_slides(folder / "cohort", slides, seed=5)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes), encoding="utf-8")
    return path


def write_nodes(folder: Path, slides: int = 6, *, to_train: int = 4, **changes: object) -> Path:
    """Write slides of one level, the manifest and a recipe that tiles them at its scale; the recipe's path.

    Slide ``sN`` is ``slides/fileN.tif`` of patient ``pN``; every second one is labelled `tumor`.
    """
    rows = [["slide_id", "path", "label", "split", "patient_id"]]
    (folder / "slides").mkdir()
    for n in range(1, slides + 1):
        write_pyramid(folder / "slides" / f"file{n}.tif", [node(n, NODE_SIZE[::-1])], mpp=(0.5, 0.5))
        split = "train" if n <= to_train else "test"
        rows.append([f"s{n}", f"slides/file{n}.tif", ("normal", "tumor")[n % 2], split, f"p{n}"])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    scales = {"tissue": {"mpp": 2.0, "min_area_um2": 0}, "tiles": {"mpp": 0.5, "patch_px": 64}}
    values = SMALL | {"manifest": "manifest.csv", "heatmap": {"mpp": 1.0}} | scales | changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"
