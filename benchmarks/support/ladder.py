"""Synthetic cohorts whose test slides go down a ladder of lesion sizes, and models trained for them.

One cohort to learn from (lesions of 0.3 to 1.2 mm, or what is asked for), and for each rung test slides in pairs of one
with tumour of that size and one with benign follicles of that size. Held-out slides share no texture with those learned
from.

    python -m benchmarks.support.ladder FOLDER [--seed 0] [--learn-mm 0.3 1.2]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from wsi_ips.config import Recipe
from wsi_ips.pipeline import Run, run_until
from wsi_ips.pipeline.run import Progress
from wsi_ips.provenance import atomic_path
from wsi_ips.slides.synthetic_cohort import CohortPlan, make_cohort

TISSUE_MM2 = {0.1: (1.5, 2.5), 0.25: (1.5, 2.5), 0.5: (1.5, 2.5), 1.0: (2.5, 3.5), 2.0: (5.0, 6.0)}
"""Lesion diameter of each rung in mm, and the tissue its slides have: larger lesions need more room."""
HELD_OUT = 1000
"""Added to the seed: other layouts, stains and textures than those of the slides learned from."""


LEARN_MM = (0.3, 1.2)


def make_ladder(
    folder: Path,
    seed: int,
    *,
    training_slides: int = 24,
    slides_per_rung: int = 8,
    learn_mm: tuple[float, float] = LEARN_MM,
) -> Path:
    """Write all slides unless they are there; the manifest, with column ``rung`` for the test slides."""
    manifest = folder / "manifest.csv"
    if manifest.exists():
        return manifest
    parts = {"learn": _plan(seed, training_slides, learn_mm, (1.5, 2.5), (1.0, 0.0, 0.0))}
    for size, tissue in TISSUE_MM2.items():
        parts[f"{size}mm"] = _plan(HELD_OUT + seed, slides_per_rung, (size, size), tissue, (1e-9, 0.0, 1.0))
    tables = []
    for name, plan in parts.items():
        table = pd.read_csv(make_cohort(folder / name, plan), keep_default_na=False)
        for column in ("path", "annotation"):
            table[column] = [f"{name}/{entry}" if entry else "" for entry in table[column]]
        table["slide_id"] = [f"{name}_{entry}" for entry in table["slide_id"]]
        table["rung"] = "" if name == "learn" else name
        tables.append(table)
    with atomic_path(manifest) as temporary:
        pd.concat(tables).to_csv(temporary, index=False, lineterminator="\n")
    return manifest


def _plan(
    seed: int,
    slides: int,
    lesion_mm: tuple[float, float],
    tissue_mm2: tuple[float, float],
    split: tuple[float, float, float],
) -> CohortPlan:
    return CohortPlan(
        slides=slides,
        size_px0=(10_240, 7_168),
        mpp=0.5,
        tissue_mm2=tissue_mm2,
        lesion_mm=lesion_mm,
        split=split,
        pen=0.1,
        blur=0.1,
        seed=seed,
    )


def ladder_recipe(manifest: Path, seed: int, *, start_steps: int, epochs: int) -> Recipe:
    """The demo's recipe on tiles of 64 µm: a lesion of 0.1 mm is not lost between larger ones."""
    return Recipe(
        name="ladder",
        output=manifest.parent / "run",
        manifest=manifest,
        seed=seed,
        tissue={"mpp": 16.0},
        tiles={"mpp": 1.0, "patch_px": 64, "min_tissue_fraction": 0.5},
        model={"encoder": "resnet18-2", "memory_size": 16, "heads": 4, "key_width": 32},
        training={
            "epochs": epochs,
            "start_steps": start_steps,
            "learning_rate": 0.0004,
            "weight_decay": 0.01,
            "tile_dropout": 0.75,
        },
    )


def trained(recipe: Recipe, progress: Progress) -> Run:
    """Train and predict what is not up to date."""
    run_until(recipe, "train", progress).pool.close()
    return run_until(recipe, "predict", progress)


def main() -> None:
    """Write a cohort."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learn-mm", type=float, nargs=2, default=LEARN_MM, metavar=("LEAST", "MOST"))
    options = parser.parse_args()
    print(make_ladder(options.folder, options.seed, learn_mm=tuple(options.learn_mm)))


if __name__ == "__main__":
    main()
