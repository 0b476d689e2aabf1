"""Accuracy and time of scoring only some tiles between full scans.

The demo's synthetic cohort, trained with a full scan in every epoch after the warm start (peer), and with one in every
fourth epoch and 25, 10 or 5 % of the tiles in between. The same slides, seeds and steps; by turns, three seeds.

    python benchmarks/learning/rescan.py [--quick] [--seeds 0 1 2] [--json FILE]

Prints a table; with --json also writes rows {case, ours, peer, peer_name, ratio, unit}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from wsi_ips.config import Recipe, load_recipe
from wsi_ips.pipeline import run_pipeline
from wsi_ips.pipeline.progress import Silent
from wsi_ips.pipeline.stages import run_until

DEMO = Path(__file__).parents[2] / "pipelines" / "demo.yaml"
SETTINGS = {
    "full": {"training.rescan_every": 1},
    "25 %": {"training.rescan_every": 4, "training.rescan_best": 0.2, "training.rescan_random": 0.05},
    "10 %": {"training.rescan_every": 4, "training.rescan_best": 0.05, "training.rescan_random": 0.05},
    "5 %": {"training.rescan_every": 4, "training.rescan_best": 0.025, "training.rescan_random": 0.025},
}
FIGURES = ("test_auc", "tile_auc_probability", "tile_auc_attention")


class Clock(Silent):
    """Remembers when each epoch ended."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def note(self, text: str) -> None:
        """Epochs announce themselves."""
        if text.startswith("epoch "):
            self.ended.append(time.perf_counter())


def recipe_of(folder: Path, seed: int, name: str, *, quick: bool) -> Recipe:
    """The demo's recipe with more epochs of selection and no tile dropout."""
    warm, scans, slides = (2, 3, 12) if quick else (40, 12, 60)
    changes: dict[str, Any] = {
        "seed": seed,
        "manifest": str(folder / f"cohort{seed}" / "manifest.csv"),
        "output": str(folder / f"{name.strip(' %')}-{seed}"),
        "synth.slides": slides,
        "training.tile_dropout": 0.0,
        "training.warm_start_epochs": warm,
        "training.epochs": warm + scans,
        "heatmap.splits": [],
    }
    return load_recipe(DEMO, changes | SETTINGS[name])


def run(folder: Path, seed: int, name: str, *, quick: bool) -> dict[str, float]:
    """Figures of one training, and the seconds of an epoch with selection."""
    recipe, clock = recipe_of(folder, seed, name, quick=quick), Clock()
    run_until(recipe, "train", clock)
    warm = recipe.training.warm_start_epochs
    spent = (clock.ended[-1] - clock.ended[warm - 1]) / (len(clock.ended) - warm)
    summary = run_pipeline(recipe).summary
    return {"seconds": spent} | {figure: float(summary[figure]) for figure in FIGURES}


def main() -> None:
    """Train them all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny cohort: that it runs, not what it shows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for name in SETTINGS:
                found[name].append(run(Path(folder), seed, name, quick=arguments.quick))
                shown = ", ".join(f"{key} {value:.3f}" for key, value in found[name][-1].items())
                print(f"seed {seed}, {name}: {shown}", flush=True)
    rows = []
    for name in list(SETTINGS)[1:]:
        for figure in ("seconds", *FIGURES):
            ours, peer = (statistics.mean(entry[figure] for entry in found[n]) for n in (name, "full"))
            unit = "s/epoch" if figure == "seconds" else "AUC"
            rows.append(
                {
                    "case": f"{name}: {figure}",
                    "ours": ours,
                    "peer": peer,
                    "peer_name": "full scans",
                    "ratio": ours / peer,
                    "unit": unit,
                }
            )
            print(f"{name:<6} {figure:<24} {ours:>8.3f} {peer:>8.3f} {ours / peer:>6.2f} {unit}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
