"""Accuracy and time of scoring only some tiles between full scans.

The same cohort, seed and steps, trained with a full scan in every epoch after the warm start, and with one in every
fourth epoch and 25, 10 or 5 % of the tiles in between; `at random` is the control: no full scan at all, in each epoch
as many tiles drawn anew as `10 %` scans on average (`training.tile_dropout`, which needs no memory of scores).

    python -m benchmarks.learning.rescan [--quick] [--cohorts synthetic digits] [--seeds 0 1 2] [--records FILE]

Prints a table of means and ranges. Each training that has ended is a line of --records; started again, it goes on.
Seconds are those of the processor, for an epoch with selection.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.digits import DigitsPlan, make_digits
from benchmarks.support.learned import figures_of_test
from wsi_ips.config import Recipe, load_recipe
from wsi_ips.evaluation.localisation import TUMOUR_TILE
from wsi_ips.pipeline import run_pipeline
from wsi_ips.pipeline.progress import Silent
from wsi_ips.pipeline.stages import run_until

PIPELINES = Path(__file__).parents[2] / "pipelines"
RECIPES = {"synthetic": PIPELINES / "demo.yaml", "digits": PIPELINES / "megapixel_digits.yaml"}
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "25 %": {"training.rescan_every": 4, "training.rescan_best": 0.2, "training.rescan_random": 0.05},
    "10 %": {"training.rescan_every": 4, "training.rescan_best": 0.05, "training.rescan_random": 0.05},
    "5 %": {"training.rescan_every": 4, "training.rescan_best": 0.025, "training.rescan_random": 0.025},
    "at random": {"training.tile_dropout": 0.675},
}
SYNTHETIC: dict[str, Any] = {
    "synth.seed": 0,
    "synth.slides": 48,
    "synth.size_px0": [12_288, 9_216],
    "synth.tissue_mm2": [3.0, 5.0],
    "synth.lesion_mm": [0.7, 1.4],
    "synth.split": [0.5, 0.0, 0.5],
    "tiles.mpp": 4.0,
    "tiles.patch_px": 32,
    "model.encoder": "resnet18-1",
    "model.memory_size": 8,
    "training.batch_slides": 4,
    "training.learning_rate": 0.0008,
    "training.tile_dropout": 0.0,
    "training.warm_start_epochs": 40,
    "training.epochs": 52,
}
CHANGES: dict[str, dict[str, Any]] = {"synthetic": SYNTHETIC, "digits": {}}
QUICK: dict[str, dict[str, Any]] = {
    "synthetic": {"synth.slides": 12, "training.warm_start_epochs": 2, "training.epochs": 5},
    "digits": {"training.warm_start_epochs": 1, "training.epochs": 5},
}
DIGITS_PLAN, DIGITS_QUICK = (
    DigitsPlan(canvases=400, split=(0.7, 0.0, 0.3)),
    DigitsPlan(canvases=20, side_px0=400, noise=6),
)
HALF_A_DIGIT = 0.5 * 28**2 / 64**2
"""Share of a tile that half of a digit covers: a tile that shows more of one counts as annotated."""


class Clock(Silent):
    """Remembers the seconds of processor and wall when each epoch ended."""

    def __init__(self) -> None:
        self.began = time.process_time()
        self.ended: list[tuple[float, float]] = []

    def note(self, text: str) -> None:
        """Epochs announce themselves."""
        if text.startswith("epoch "):
            self.ended.append((time.process_time(), time.perf_counter()))

    def per_epoch(self, first: int) -> tuple[float, float]:
        """Mean of the epochs after the first ones."""
        (cpu0, wall0), (cpu1, wall1) = self.ended[first - 1], self.ended[-1]
        return (cpu1 - cpu0) / (len(self.ended) - first), (wall1 - wall0) / (len(self.ended) - first)


def recipe_of(folder: Path, cohort: str, seed: int, setting: str, *, quick: bool) -> Recipe:
    """The cohort's recipe with one setting."""
    changes = {
        "seed": seed,
        "manifest": str(folder / cohort / "manifest.csv"),
        "output": str(folder / f"{cohort}-{seed}"),  # one for all settings: the tiles stay as they are
        "heatmap.splits": [],
        "compute.readers": 1,
    }
    return load_recipe(
        RECIPES[cohort], changes | CHANGES[cohort] | (QUICK[cohort] if quick else {}) | SETTINGS[setting]
    )


def run(recipe: Recipe, annotated: float) -> dict[str, float]:
    """Figures of one training, and the seconds of an epoch with selection."""
    clock = Clock()
    run_until(recipe, "train", clock)
    cpu, wall = clock.per_epoch(recipe.training.warm_start_epochs)
    summary = run_pipeline(recipe).summary
    seconds = {"cpu_seconds": cpu, "wall_seconds": wall, "cpu_seconds_in_all": clock.ended[-1][0] - clock.began}
    names = ("test_auc", "tile_auc_probability", "tile_auc_attention")
    return (
        seconds
        | figures_of_test(recipe, annotated)
        | {name: summary[name] for name in names if summary[name] is not None}
    )


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny cohort: that it runs, not what it shows")
    parser.add_argument("--cohorts", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--records", type=Path, help="a line for each training that has ended; they are not run again")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        records = arguments.records or Path(temporary) / "records.jsonl"
        work = records.with_suffix("") if arguments.records else Path(temporary) / "work"
        for cohort in arguments.cohorts:
            for seed in arguments.seeds[: 1 if arguments.quick else None]:
                for setting in arguments.settings:
                    known = {(r["cohort"], r["seed"], r["setting"]) for r in read(records)}
                    if (cohort, seed, setting) in known:
                        continue
                    if cohort == "digits" and not (work / cohort / "manifest.csv").exists():
                        make_digits(work / cohort, DIGITS_QUICK if arguments.quick else DIGITS_PLAN)
                    recipe = recipe_of(work, cohort, seed, setting, quick=arguments.quick)
                    figures = run(recipe, HALF_A_DIGIT if cohort == "digits" else TUMOUR_TILE)
                    with records.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"cohort": cohort, "seed": seed, "setting": setting, **figures}) + "\n")
        print_table(read(records))


def read(records: Path) -> list[dict[str, Any]]:
    """All trainings that have ended."""
    return [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()] if records.exists() else []


def print_table(records: list[dict[str, Any]]) -> None:
    """Mean, smallest and largest of each figure."""
    for cohort in dict.fromkeys(r["cohort"] for r in records):
        for setting in SETTINGS:
            rows = [r for r in records if (r["cohort"], r["setting"]) == (cohort, setting)]
            print(f"{cohort}, {setting}, {len(rows)} trainings")
            for figure in [name for name in (rows[0] if rows else {}) if name not in ("cohort", "seed", "setting")]:
                values = [r[figure] for r in rows]
                print(f"  {figure:<24} {statistics.mean(values):>8.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
