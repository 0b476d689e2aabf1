"""Trainings to be compared: one recipe with a few keys changed, each trained and tested in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.support.even_tiles import EVEN, recipe_changes
from wsi_ips.config import load_recipe
from wsi_ips.evaluation.classification import auc_with_interval
from wsi_ips.evaluation.localisation import TUMOUR_TILE
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.pipeline import Run, run_stage
from wsi_ips.pipeline.evaluate_run import evaluate_run

Figures = dict[str, Any]
NO_SELECTION = {EVEN: True, "training.exploration": 0.0}
IMAGENET = {"model.encoder": "timm:tf_efficientnet_lite0", "model.weights": "WEIGHTS"}
FEATURES = {**IMAGENET, "model.input": "features", "features.location": "FEATURES"}
NO_COLOUR = {"hed": 0.0, "brightness": 0.0, "saturation": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "IPS": {},
    "M even tiles, no selection": NO_SELECTION,
    "gated attention on the best M": {"model.pooling": "abmil"},
    "features, gated attention": {**FEATURES, "model.pooling": "abmil", "model.memory_size": 4096},
    "features, IPS": FEATURES,
    "IPS from ImageNet": IMAGENET,
    "IPS from ImageNet, outlines": {**IMAGENET, "training.known_tiles": 0.25},
    "IPS from ImageNet, encoder frozen": {**IMAGENET, "model.freeze": "all"},
    "IPS, no warm start": {"training.start": "none"},
    "IPS, no tile loss": {"training.tile_loss": 0.0},
    "IPS, no exploration": {"training.exploration": 0.0},
    "IPS, all tiles in each epoch": {"training.tile_dropout": 0.0},
    "IPS, M x 4": {"model.memory_size": 64},
    "IPS, no augmentation": {"training.augment": False},
    "IPS, light stain jitter": {"training.augment": {**NO_COLOUR, "hed": 0.1}},
    "IPS, stronger jitter": {"training.augment": {"hed": 0.3}},
}
"""Keys of the recipe that each variant changes.

WEIGHTS and FEATURES stand for places: a file that is given, a store that all share.
"""


@dataclass(frozen=True)
class Training:
    """One training to be done: recipe and manifest, what is changed, and where it lies.

    Attributes
    ----------
    recipe, manifest
        What is trained.
    shared
        Folder of the tiles, which all trainings on the manifest share.
    folder
        Of this training; figures that stand there are not made again.
    changes
        Keys of the recipe.
    by
        Column of the manifest whose values have figures of their own; empty is none.
    """

    recipe: Path
    manifest: Path
    shared: Path
    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    by: str = ""

    @property
    def result(self) -> Path:
        """Where the figures are."""
        return self.folder / "figures.json"


def training(
    recipe: Path,
    manifest: Path,
    work: Path,
    variant: str,
    seed: int,
    *,
    own: bool = False,
    by: str = "",
    weights: Path | None = None,
) -> Training:
    """The training of a variant; ``own``: the seed has a cohort of its own, and so tiles."""
    shared = (work / (f"tiles_{seed}" if own else "tiles")).resolve()
    places = {"WEIGHTS": weights, "FEATURES": shared / "features.zarr"}
    if weights is None and "WEIGHTS" in VARIANTS[variant].values():
        raise SystemExit(f"`{variant}` needs --weights (benchmarks/support/imagenet.py)")
    changes = {
        key: str(places[value]) if isinstance(value, str) and value in places else value
        for key, value in VARIANTS[variant].items()
    }
    folder = (work / f"{variant.replace(', ', '_').replace(' ', '-')}_{seed}").resolve()
    return Training(recipe, manifest.resolve(), shared, folder, {"seed": seed, **changes}, by)


def run_all(trainings: Sequence[Training], *, jobs: int = 1) -> list[Figures | None]:
    """Figures of trainings, a process each, ``jobs`` at a time with a thread each; None for what failed."""
    for one in {one.shared: one for one in trainings if not one.result.exists()}.values():
        recipe = load_recipe(one.recipe, {"manifest": str(one.manifest), "output": str(one.shared)})
        run_stage(recipe, "tile").slides.pool.close()

    def figures(one: Training) -> Figures | None:
        asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(one).items()}
        return in_own_process(one.result, ["benchmarks.learning.runs", json.dumps(asked)], threads=1 if jobs > 1 else 0)

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(figures, trainings))


def in_own_process(result: Path, module: Sequence[str], *, threads: int = 0) -> Figures | None:
    """Figures that a module of its own process writes to ``result``, unless they stand there; None where it failed.

    Parameters
    ----------
    result
        JSON file; what the process says goes to ``log.txt`` beside it.
    module
        The module and its arguments.
    threads
        Of the process; 0 leaves it to PyTorch.
    """
    if not result.exists():
        result.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        with (result.parent / "log.txt").open("w", encoding="utf-8") as log:
            command = [sys.executable, "-m", *module]
            done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            print(f"{result.parent.name} failed: see {log.name}", file=sys.stderr)
            return None
    found: Figures = json.loads(result.read_text(encoding="utf-8"))
    return found


def run_one(one: Training) -> None:
    """Train, predict and measure in this process."""
    both = {"manifest": str(one.manifest), "output": str(one.folder), "tiles.shared": str(one.shared)}
    recipe = load_recipe(one.recipe, {**both, **recipe_changes(one.changes)})
    began, cpu = time.monotonic(), time.process_time()
    run_stage(recipe, "train").slides.pool.close()
    cost = {"minutes": (time.monotonic() - began) / 60, "cpu_minutes": (time.process_time() - cpu) / 60}
    with run_stage(recipe, "predict") as run:
        found = measured(run, one.by)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    one.result.write_text(json.dumps(found | cost | {"peak_rss_mb": peak}) + "\n", encoding="utf-8")


def measured(run: Run, by: str = "") -> Figures:
    """Figures of the test slides of a run, and of those of each value of a column."""
    records = [record for record in run.predictions.predicted() if record.split == "test"]
    rows = [_row(run, record) for record in records]
    found = figures_of(rows)
    summary = evaluate_run(run.predictions).summary()
    found |= {
        name.removeprefix("test_"): summary.get(name) for name in ("froc", "test_sensitivity", "test_specificity")
    }
    if by:
        column = pd.read_csv(run.recipe.manifest, dtype=str, keep_default_na=False).set_index("slide_id")[by]
        groups: dict[str, list[Figures]] = {}
        for row in rows:
            groups.setdefault(column[row["slide_id"]], []).append(row)
        found["by"] = {name: figures_of(rows) for name, rows in groups.items()}
    return found


def _row(run: Run, record: Any) -> Figures:
    index, entry = run.slides.index(record), read_scores(run.folder.scores, record.slide_id)
    fraction = np.zeros(len(index)) if index.tumour_fraction is None else index.tumour_fraction
    is_tumour = fraction > TUMOUR_TILE
    return {
        "slide_id": record.slide_id,
        "truth": run.recipe.labels.tasks[0].is_positive(run.slides.target(record)),
        "score": entry.probabilities[0][-1],
        "tumour": is_tumour,
        "tiles": entry.positive_probability,
        "by_tiles": entry.decided(0, "tiles")[-1],
        "kept": is_tumour[entry.kept],
    }


def figures_of(rows: Sequence[Figures]) -> Figures:
    """Figures of some slides, each as :func:`_row` gives it."""
    truth, score = np.array([row["truth"] for row in rows]), np.array([row["score"] for row in rows])
    auc = auc_with_interval(truth, score)
    tumour, tiles = (np.concatenate([row[key] for row in rows]) for key in ("tumour", "tiles"))
    with_tumour = [row for row in rows if row["tumour"].any()]
    return {
        "slides": len(rows),
        "auc": auc.value,
        "auc_interval": [auc.low, auc.high],
        "auc_by_tiles": auc_with_interval(truth, np.array([row["by_tiles"] for row in rows])).value,
        "tile_auc": float(roc_auc_score(tumour, tiles)),
        "tile_pr_auc": float(average_precision_score(tumour, tiles)),
        "selection_recall": float(
            np.mean([row["kept"].sum() / min(len(row["kept"]), row["tumour"].sum()) for row in with_tumour])
        ),
        "found": float(np.mean([row["kept"].any() for row in with_tumour])),
        "pointing": float(np.mean([row["tumour"][int(np.argmax(row["tiles"]))] for row in with_tumour])),
    }


COLUMNS = {
    "auc": ("slide AUC", 3),
    "sensitivity": ("sensitivity", 2),
    "specificity": ("specificity", 2),
    "auc_by_tiles": ("slide AUC, `predict.decision: tiles`", 3),
    "tile_auc": ("tile AUC", 3),
    "tile_pr_auc": ("tile PR-AUC", 3),
    "froc": ("FROC", 3),
    "selection_recall": ("selection recall", 3),
    "pointing": ("highest tile is tumour", 2),
    "cpu_minutes": ("CPU min", 1),
}
"""Figures of a table: their heading and digits."""


def header(first: str) -> str:
    """Head of a table in Markdown."""
    names = [first, *(name for name, _ in COLUMNS.values())]
    return "| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|"


def line(name: str, found: Sequence[Mapping[str, Any] | None]) -> str:
    """A row of the table."""
    return "| " + " | ".join([name, *(cell(found, key, digits) for key, (_, digits) in COLUMNS.items())]) + " |"


def cell(found: Sequence[Mapping[str, Any] | None], key: str, digits: int) -> str:
    """Mean of a figure over trainings, the smallest and largest in brackets; of those that have it."""
    values = [entry[key] for entry in found if entry is not None and entry.get(key) is not None]
    if not values:
        return ""
    spread = f" ({min(values):.{digits}f}–{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def print_table(found: Mapping[str, Sequence[Mapping[str, Any] | None]]) -> None:
    """Print the figures of trainings, a line per variant."""
    print(header("training"))
    for name, entries in found.items():
        print(line(name, entries))


def common_options(parser: argparse.ArgumentParser, variants: Sequence[str]) -> None:
    """Options that all comparisons have."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(variants), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--weights", type=Path, help="ImageNet weights, from benchmarks/support/imagenet.py")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, a thread each where more than one")
    parser.add_argument("--json", type=Path)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    places = {key: Path(asked[key]) for key in ("recipe", "manifest", "shared", "folder")}
    run_one(Training(**places, changes=asked["changes"], by=asked["by"]))
