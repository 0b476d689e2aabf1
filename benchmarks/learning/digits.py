"""Megapixel digits: what selection of M tiles learns, and what the accuracy of the paper would take.

    python -m benchmarks.learning.digits WORK [--seeds 0] [--cohort 0] [--canvases 2000] [--epochs 6]
        [--curve 500 1000] [--variants NAME ...] [--sides 3000 6000] [--jobs N] [--json FILE]

Canvases are plain grey PNGs, read in units of pixels with the recipe ``pipelines/megapixel_digits.yaml``. From scratch
nothing is learned before some 6 500 canvases of 1500 px were seen (DECISIONS D48). So the network first learns the same
four questions on canvases of 256 x 256 px (``start``, 16 tiles, all kept), and each training on large canvases starts
from there (``model.start``); digits, canvases and strokes are others, and no digit image is in two parts.

``--curve`` repeats the training with fewer canvases. From these and the whole it estimates the canvases and hours for
the paper's 0.991 (majority), by a power law of the error. ``--variants`` are trainings to compare with; the small
picture is a network of its own on canvases of 188 px, a tile each. ``--sides`` tries the trained model on larger
canvases with as many digits and strokes.

Prints, of 150 canvases that nothing was chosen on (of the small ones: of those that validate): accuracy of majority,
max and top, share of the canvases with exactly the right set of digits (multi), of the tiles that hold a part of a
digit and could be kept the share that is, CPU minutes, largest process. Everything stands in WORK and is not done
again. ``--cohort`` is the seed of the canvases and of which digit images are for testing.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
VAL, TEST = 100, 150  # canvases
ALL = 100_000
PUBLISHED_ACCURACY, PUBLISHED_VIEWS = 0.991, 5_000 * 150
VARIANTS: dict[str, dict[str, Any]] = {
    "IPS": {},
    "all tiles": {"model.memory_size": ALL},
    "M even tiles": {EVEN: True},
    "small picture": {"model.start": None, "tiles.mpp": 8.0, "tiles.patch_px": 187, "training.epochs": 12},
    "IPS from scratch": {"model.start": None},
}
TASKS = ("majority", "max", "top", "multi")
COLUMNS = {"kept": 2, "cpu_minutes": 1, "peak_rss_mb": 0}


def cohort(work: Path, side: int, counts: tuple[int, int, int], *, noise: int, seed: int) -> Path:
    """Canvases of that side, so many of train, val and test; the manifest. With one seed no image is in two parts."""
    folder = work / f"canvases_{seed}_{side}_{sum(counts)}"
    if not (folder / "manifest.csv").exists():
        parts: tuple[Part, ...] = ("train", "val", "test")
        made = tuple(part for part, count in zip(parts, counts, strict=True) if count)
        make_digits(folder, DigitsPlan(sum(counts), side, noise, seed=seed, canvas_split=counts, parts=made))
    return folder / "manifest.csv"


def fewer(manifest: Path, canvases: int) -> Path:
    """A manifest with the first so many of the training canvases, and all others."""
    table = pd.read_csv(manifest, dtype=str)
    number = (table["split"] == "train").cumsum()
    path = manifest.with_name(f"manifest_{canvases}.csv")
    table[(table["split"] != "train") | (number <= canvases)].to_csv(path, index=False)
    return path


def one(manifest: Path, folder: Path, changes: dict[str, Any]) -> Figures | None:
    """Figures of a training, or of a model that `predict.checkpoint` names, made in a process of its own."""
    asked = json.dumps([str(manifest), str(folder), changes])
    return in_own_process(folder / "figures.json", ["benchmarks.learning.digits", "--one", asked], threads=1)


def run_one(manifest: str, folder: str, changes: dict[str, Any]) -> None:
    """Train, predict and measure in this process."""
    scale = f"tiles_{changes.get('tiles.mpp', 2.0):g}"
    places = {
        "manifest": manifest,
        "output": folder,
        "model.encoder": ENCODER,
        "tiles.shared": str(Path(manifest).parent / scale),
        "compute.workers": 0,
        "compute.readers": 1,
    }
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
        "learned_from": int((table["split"] == "train").sum()),
        "tiles": int(np.mean([len(run.slides.index(r)) for r in run.states.with_tiles(run.slides.records)])),
        **{name: float(np.mean(values)) for name, values in right.items()},
        "kept": float(np.mean(kept)),
    }


def line(name: str, found: Sequence[Figures | None]) -> str:
    """A row of the table."""
    figures = {"learned_from": 0, "tiles": 0} | dict.fromkeys(TASKS, 2) | COLUMNS
    return "| " + " | ".join([name, *(cell(found, key, digits) for key, digits in figures.items())]) + " |"


def estimate(found: Sequence[Figures], epochs: int) -> str:
    """Canvases and hours for the paper's accuracy, from trainings on several numbers of canvases."""
    views = sum(figures["learned_from"] + VAL for figures in found) * epochs  # to validate takes nearly as long
    seconds = 60 * sum(figures["cpu_minutes"] for figures in found) / views
    text = (
        f"{seconds:.3f} CPU s a view of a canvas of {SIDE} px: {PUBLISHED_VIEWS:,} views, as in the paper, would take "
        f"{PUBLISHED_VIEWS * seconds / 3600:.0f} CPU hours"
    )
    counts = np.array([figures["learned_from"] for figures in found], float)
    errors = np.array([max(1 - figures["majority"], 0.5 / figures["canvases"]) for figures in found])
    if len(set(counts)) < 2:
        return text
    slope, level = np.polyfit(np.log(counts), np.log(errors), 1)
    if slope >= 0:
        return f"{text}; the error of majority does not fall with the number of canvases"
    needed = np.exp((np.log(1 - PUBLISHED_ACCURACY) - level) / slope)
    return (
        f"{text}; error of majority ~ canvases^{slope:.2f}, so {PUBLISHED_ACCURACY} takes about {needed:,.0f} canvases "
        f"and {needed * epochs * seconds / 3600:,.0f} CPU hours at {epochs} epochs"
    )


def options_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cohort", type=int, default=0)
    parser.add_argument("--canvases", type=int, default=2000, help="of 1500 px to learn from")
    parser.add_argument("--small", type=int, default=12000, help="canvases of 256 px to learn from")
    parser.add_argument("--small-epochs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=6, help="on large canvases")
    parser.add_argument("--curve", type=int, nargs="*", default=[500, 1000], help="fewer canvases, for the estimate")
    parser.add_argument("--sides", type=int, nargs="*", default=[])
    parser.add_argument("--variants", nargs="+", default=["IPS"], choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Make canvases, train, print the tables."""
    options = options_of()
    if options.one:
        run_one(*json.loads(options.one))
        return
    work, seeds = options.work.resolve(), options.seeds
    small = cohort(work, SMALL_SIDE, (options.small, 4 * VAL, 0), noise=3, seed=options.cohort)
    large = cohort(work, SIDE, (options.canvases, VAL, TEST), noise=50, seed=options.cohort)
    heads = ("training", "canvases", "tiles", *TASKS, "tiles with a digit that are kept", "CPU min", "peak MB")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|", flush=True)
    rows = dict[str, list[Figures | None]]()

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
    trained = {"training.epochs": options.epochs, "predict.splits": ["test"]}
    for variant in options.variants:
        changes = trained | VARIANTS[variant]
        all_of(variant, large, changes, own=lambda seed, c=changes: {"model.start": str(starts[seed])} | c)
    for count in options.curve:
        name, own = f"IPS, {count} canvases", lambda seed: {"model.start": str(starts[seed])}
        all_of(name, fewer(large, count), trained, own=own)
    for side in options.sides:
        manifest = cohort(work, side, (0, 0, max(25, 75_000 // side)), noise=50, seed=options.cohort)
        best = {seed: str(work / f"IPS_{seed}" / "model") for seed in seeds}
        all_of(f"IPS of {SIDE} px on {side} px", manifest, {}, own=lambda s, b=best: {"predict.checkpoint": b[s]})
    known = [f for name in rows if name == "IPS" or name.endswith("canvases") for f in rows[name] if f is not None]
    if known:
        print("\n" + estimate(known, options.epochs))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
