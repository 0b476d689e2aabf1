"""What is learned from slide labels alone: the method against simpler poolings, on a cohort of real files.

Each variant is the same recipe with a few keys changed, trained and tested as `wsi-ips train`, `predict` and `evaluate`
do it, a process each. Tiles are made once and shared.

    python -m benchmarks.learning.compare RECIPE MANIFEST WORK [--seeds 0 1 2] [--variants NAME ...] [--json FILE]

Finished runs stand in WORK and are not done again. Prints a table, mean over seeds and each seed in brackets: slide AUC
on the test slides and on those that validated, tile AUC and PR-AUC of the single-tile probability over the tiles of
test slides, share of tumour slides with a tumour tile among those kept, share whose highest tile is tumour, minutes of
training, peak MB. The JSON holds 95 % intervals too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_ips.config import Recipe, load_recipe

VARIANTS: dict[str, dict[str, Any]] = {
    "IPS": {},
    "IPS, no augmentation": {"training.augment": False},
    "IPS, no warm start": {"training.warm_start_epochs": 0},
    "IPS, no tile loss": {"training.tile_loss": 0.0},
    "gated attention on the best M": {"model.pooling": "abmil"},
    "mean of M even tiles": {"model.pooling": "mean"},
    "best single tile": {"model.pooling": "max"},
}
"""Keys of the recipe that each variant changes."""


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options, options.one, options.seeds[0])
        return
    rows = []
    for variant in options.variants:
        found = [figures(options, variant, seed) for seed in options.seeds]
        rows.append({"variant": variant, "seeds": found})
        print(line(variant, found), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def figures(options: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """Figures of one run, made in a process of its own unless they are there."""
    path = run_folder(options.work, variant, seed) / "figures.json"
    if not path.exists():
        places = [str(place) for place in (options.recipe, options.manifest, options.work)]
        command = [sys.executable, "-m", "benchmarks.learning.compare", *places]
        subprocess.run([*command, "--seeds", str(seed), "--one", variant], check=True)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def run_folder(work: Path, variant: str, seed: int) -> Path:
    """Where a run lies."""
    return work / f"{variant.replace(', ', '_').replace(' ', '-')}_{seed}"


def run_one(options: argparse.Namespace, variant: str, seed: int) -> None:
    """Train and test one variant."""
    from wsi_ips.pipeline import run_until

    shared, folder = (options.work / "tiles").resolve(), run_folder(options.work, variant, seed).resolve()
    both = {"manifest": str(options.manifest.resolve())}
    run_until(load_recipe(options.recipe, {**both, "output": str(shared)}), "tile")
    own = {"seed": seed, "output": str(folder), "tiles.shared": str(shared)}
    recipe = load_recipe(options.recipe, {**both, **VARIANTS[variant], **own})
    began = time.monotonic()
    run_until(recipe, "train")
    minutes = (time.monotonic() - began) / 60
    run_until(recipe, "predict")
    (folder / "figures.json").write_text(json.dumps(measured(recipe) | {"minutes": round(minutes, 1)}) + "\n")


def measured(recipe: Recipe) -> dict[str, Any]:
    """Figures of the test slides of a run, and of those that validated."""
    from wsi_ips.evaluation.localisation import tile_figures
    from wsi_ips.inference import read_scores
    from wsi_ips.pipeline import Run
    from wsi_ips.pipeline.evaluate import evaluate_run
    from wsi_ips.pipeline.scored import predicted

    with Run.open(recipe) as run:
        found = {split: evaluate_run(run, split=split) for split in ("val", "test")}
        records = [r for r in predicted(run) if r.split == "test"]
        indexes = [run.index(r) for r in records]
        fractions = [
            np.zeros(len(index)) if index.tumour_fraction is None else index.tumour_fraction for index in indexes
        ]
        scores = [read_scores(run.folder.scores, r.slide_id).positive_probability for r in records]
    tiles = tile_figures(np.concatenate(fractions), np.concatenate(scores))
    slides, validation, where = found["test"].slides, found["val"].slides, found["test"].localisation
    auc = slides.metrics["auc"] if slides else None
    return {
        "auc": auc.value if auc else None,
        "auc_interval": [auc.low, auc.high] if auc else None,
        "auc_val": validation.metrics["auc"].value if validation else None,
        "tile_auc": tiles.auc,
        "tile_pr_auc": tiles.pr_auc,
        "selection_recall": where.selection_recall if where else None,
        "pointing": where.pointing if where else None,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }


def line(variant: str, found: Sequence[dict[str, Any]]) -> str:
    """A row of the table: mean over seeds, each seed in brackets."""

    def cell(name: str, digits: int = 3) -> str:
        values = [entry[name] for entry in found if entry[name] is not None]
        if not values:
            return ""
        each = f" ({', '.join(f'{v:.{digits}f}' for v in values)})" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{each}"

    names = ("auc", "auc_val", "tile_auc", "tile_pr_auc", "selection_recall", "pointing")
    cells = [cell(name) for name in names] + [cell("minutes", 1), cell("peak_rss_mb", 0)]
    return "| " + " | ".join([variant, *cells]) + " |"


if __name__ == "__main__":
    main()
