"""Megapixel digits: what selection of M tiles learns, against all tiles, as many at even steps, and a small picture.

    python -m benchmarks.learning.digits WORK [--seeds 0] [--canvases 400] [--epochs 6] [--sides 3000 6000] [--jobs N]
        [--json FILE]

Nothing learns the five digits of a canvas of 1500 x 1500 px from scratch in hours of two CPU cores (DECISIONS D48). So
the network first learns the same four questions on canvases of 256 x 256 px (`start`, 16 tiles, all kept), and each
training on large canvases starts from there (`model.start`); digits, canvases and strokes are others, and no digit
image is in two parts. The small picture is a network of its own on canvases of 188 px, a tile each. Trained models are
then tried on larger canvases with as many digits and strokes.

Prints, of the test canvases (of the small ones: of those that validate): accuracy of majority, max and top, share of
the canvases with exactly the right set of digits (multi), of the tiles that hold a part of a digit and could be kept
the share that is, CPU minutes, largest process.
Everything stands in WORK and is not done again.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.learning.runs import Figures, cell, in_own_process
from benchmarks.support.digit_encoder import digit_encoder
from benchmarks.support.digits import DigitsPlan, Part, make_digits
from benchmarks.support.even_tiles import EVEN, recipe_changes
from wsi_ips.config import load_recipe
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.pipeline import Run, run_stage

ENCODER = f"timm:{digit_encoder.__name__}"
RECIPE = Path(__file__).parents[2] / "pipelines" / "megapixel_digits.yaml"
SIDE, SMALL_SIDE = 1500, 256
ALL = 100_000
PARTS: tuple[Part, ...] = ("train", "val", "test")
VARIANTS: dict[str, dict[str, Any]] = {
    "IPS": {},
    "all tiles": {"model.memory_size": ALL},
    "M even tiles": {EVEN: True},
    "small picture": {"model.start": None, "tiles.mpp": 4.0, "tiles.patch_px": 187, "training.epochs": 12},
    "IPS from scratch": {"model.start": None},
}
TASKS = ("majority", "max", "top", "multi")
COLUMNS = {"kept": 2, "cpu_minutes": 1, "peak_rss_mb": 0}


def cohort(work: Path, side: int, canvases: int, noise: int, parts: tuple[Part, ...] = PARTS) -> Path:
    """Canvases of that side, of some parts; the manifest."""
    folder = work / f"canvases_{side}"
    if not (folder / "manifest.csv").exists():
        plan = DigitsPlan(canvases=canvases, side_px0=side, noise=noise)  # of one seed: the same images are for testing
        make_digits(folder, replace(plan, parts=parts))
    return folder / "manifest.csv"


def one(manifest: Path, folder: Path, changes: dict[str, Any]) -> Figures | None:
    """Figures of a training, or of a model that `predict.checkpoint` names, made in a process of its own."""
    asked = json.dumps([str(manifest), str(folder), changes])
    return in_own_process(folder / "figures.json", ["benchmarks.learning.digits", "--one", asked])


def run_one(manifest: str, folder: str, changes: dict[str, Any]) -> None:
    """Train, predict and measure in this process."""
    places = {"manifest": manifest, "output": folder, "model.encoder": ENCODER}
    recipe = load_recipe(RECIPE, places | recipe_changes(changes))
    run_stage(recipe, "tile").slides.pool.close()
    cpu, began = time.process_time(), time.monotonic()
    if recipe.predict.checkpoint is None:
        run_stage(recipe, "train").slides.pool.close()
    cost = {"cpu_minutes": (time.process_time() - cpu) / 60, "minutes": (time.monotonic() - began) / 60}
    with run_stage(recipe, "predict") as run:
        found = measured(run)
    cost["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    (Path(folder) / "figures.json").write_text(json.dumps(found | cost) + "\n", encoding="utf-8")


def measured(run: Run) -> Figures:
    """Figures of the canvases that were predicted."""
    table = pd.read_csv(run.recipe.manifest, dtype=str).set_index("slide_id")
    right: dict[str, list[bool]] = {name: [] for name in TASKS}
    kept = []
    for record in (r for r in run.predictions.predicted() if r.split in run.recipe.predict.splits):
        entry, truth = read_scores(run.folder.scores, record.slide_id), table.loc[record.slide_id]
        for name, column, values in zip(TASKS, ("label", "max", "top"), entry.probabilities, strict=False):
            right[name].append(int(np.argmax(values)) == int(truth[column]))
        chosen = {number for number, value in enumerate(entry.probabilities[3]) if value > 0.5}
        right["multi"].append(chosen == {int(value) for value in truth["multi"].split(";")})
        digits = run.slides.index(record).tumour_fraction
        if digits is not None:
            with_digit = digits > 0
            kept.append(with_digit[entry.kept].sum() / min(len(entry.kept), with_digit.sum()))
    return {
        "canvases": len(kept),
        "tiles": int(np.mean([len(run.slides.index(r)) for r in run.states.with_tiles(run.slides.records)])),
        **{name: float(np.mean(values)) for name, values in right.items()},
        "kept": float(np.mean(kept)),
    }


def line(name: str, found: Sequence[Figures | None]) -> str:
    """A row of the table."""
    cells = [cell(found, key, digits) for key, digits in ({"tiles": 0} | dict.fromkeys(TASKS, 2) | COLUMNS).items()]
    return "| " + " | ".join([name, *cells]) + " |"


def main() -> None:
    """Make canvases, train, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--canvases", type=int, default=600, help="of 1500 px; a quarter is for testing")
    parser.add_argument("--small", type=int, default=8000, help="canvases of 256 px; a quarter is left out")
    parser.add_argument("--small-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=4, help="on large canvases")
    parser.add_argument("--sides", type=int, nargs="*", default=[3000, 6000])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(*json.loads(options.one))
        return
    work = options.work.resolve()
    small = cohort(work, SMALL_SIDE, options.small, 3, ("train", "val"))
    large = cohort(work, SIDE, options.canvases, 50)
    print("| training | tiles | " + " | ".join(TASKS) + " | tiles with a digit that are kept | CPU min | peak MB |")
    print("|---" * (len(TASKS) + 5) + "|", flush=True)
    seeds, rows = options.seeds, dict[str, list[Figures | None]]()

    def all_of(name: str, manifest: Path, changes: dict[str, Any], *, own: Any = lambda _: {}) -> None:
        """Train or predict with every seed, print the row."""
        pool = ThreadPoolExecutor(options.jobs)
        folders = [work / f"{name.replace(' ', '-').replace(',', '')}_{seed}" for seed in seeds]
        every = [{"seed": seed, **changes, **own(seed)} for seed in seeds]
        with pool:
            rows[name] = list(pool.map(one, [manifest] * len(seeds), folders, every))
        print(line(name, rows[name]), flush=True)

    all_of(f"start, {SMALL_SIDE} px", small, {"training.epochs": options.small_epochs, "predict.splits": ["val"]})
    starts = {seed: work / f"start-{SMALL_SIDE}-px_{seed}" / "model" for seed in seeds}
    for variant in options.variants:
        changes = {"training.epochs": options.epochs, "predict.splits": ["test"], **VARIANTS[variant]}
        all_of(variant, large, changes, own=lambda seed, c=changes: {"model.start": str(starts[seed])} | c)
    for side in options.sides:
        manifest = cohort(work, side, max(100, 600_000 // side), 50, ("test",))
        trained = {seed: str(work / f"IPS_{seed}" / "model") for seed in seeds}
        all_of(f"IPS of {SIDE} px on {side} px", manifest, {}, own=lambda s, t=trained: {"predict.checkpoint": t[s]})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
