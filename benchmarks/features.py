"""Frozen features against end-to-end training on the demo's cohort: time and accuracy, with an untrained encoder.

All learn from the same tiles with the demo's recipe and its small encoder from scratch: end to end on pixels; on
stored features with each pooling; and end to end from the features model. The features themselves are computed once;
their time counts in full in every row of features. Everything runs in this process, so CPU seconds say what a busy
machine hides.

    python benchmarks/features.py [--quick] [--json FILE] [--run FOLDER] [--work FOLDER]

--run names a finished demo whose slides and tiles are used (its model is not). Prints a table; with --json also writes
rows {case, ours, peer, peer_name, ratio, unit}: the peer is end to end. Untrained weights say little of published
encoders: of those, features are better, and cost more.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

from wsi_ips.config import Recipe, load_recipe
from wsi_ips.model.poolings import POOLINGS
from wsi_ips.pipeline import Run, run_until
from wsi_ips.pipeline.demo_slides import DEMO, make_slides
from wsi_ips.pipeline.evaluate_run import evaluate_run
from wsi_ips.pipeline.features_stage import features_stage
from wsi_ips.pipeline.predict_stage import predict_stage
from wsi_ips.pipeline.train_stage import train_stage

STARTED = {"training.epochs": 10, "training.start": "none", "training.exploration": 0.25}
QUICK_SLIDES = replace(DEMO, slides=16, size_px0=(6144, 4096), tissue_mm2=(0.8, 1.2), lesion_mm=(0.4, 0.6))
QUICK_TRAINING = {"training.epochs": 6, "training.start_steps": 8}


class Seen(NamedTuple):
    """One training: seconds of clock and CPU until its checkpoint stood, slide AUC and tile AUC on the test slides."""

    wall_s: float
    cpu_s: float
    slide_auc: float
    tile_auc: float


def recipe_of(work: Path, name: str, *, quick: bool, **changes: Any) -> Recipe:
    """The demo's recipe in a folder of its own, on shared slides, tiles and features."""
    overrides: dict[str, Any] = {
        "output": str(work / name),
        "manifest": str(work / "cohort" / "manifest.csv"),
        "features.location": str(work / "features.zarr"),
        "compute.workers": 0,
        **(QUICK_TRAINING if quick else {}),
        **changes,
    }
    with as_file(files("wsi_ips") / "demo.yaml") as path:
        return load_recipe(path, overrides)


def prepare(work: Path, run: Path | None, *, quick: bool) -> None:
    """Slides and tiles, of a finished run or made here."""
    tiled = work / "tiled"
    if run is not None:
        tiled.mkdir(parents=True)
        (work / "cohort").symlink_to((run / "cohort").resolve())
        shutil.copytree(run / "tiles.zarr", tiled / "tiles.zarr")
        shutil.copy(run / "run.sqlite", tiled)
    else:
        make_slides(work / "cohort", QUICK_SLIDES if quick else DEMO)
    run_until(recipe_of(work, "tiled", quick=quick), "tile")


def measure(work: Path, name: str, *, quick: bool, **changes: Any) -> Seen:
    """Train, predict and measure; the clock stops at the checkpoint."""
    shutil.copytree(work / "tiled", work / name)
    recipe = recipe_of(work, name, quick=quick, **changes)
    with Run.open(recipe) as run:
        wall, cpu = time.monotonic(), time.process_time()
        train_stage(run)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        predict_stage(run)
        summary = evaluate_run(run).summary()
    aucs = [summary[name] for name in ("test_auc", "tile_auc_probability")]
    return Seen(wall, cpu, *(float("nan") if auc is None else auc for auc in aucs))


def embed(work: Path, *, quick: bool) -> Seen:
    """Compute the features; no accuracy."""
    shutil.copytree(work / "tiled", work / "embedded")
    recipe = recipe_of(work, "embedded", quick=quick, **{"model.input": "features"})
    with Run.open(recipe) as run:
        wall, cpu = time.monotonic(), time.process_time()
        features_stage(run)
    return Seen(time.monotonic() - wall, time.process_time() - cpu, float("nan"), float("nan"))


def main() -> None:
    """Measure, print, and write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--work", type=Path, help="an empty folder that is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        prepare(work, options.run, quick=options.quick)
        print("| training | wall s | CPU s | test AUC | tile AUC |\n|---|---|---|---|---|", flush=True)
        seen: dict[str, Seen] = {}

        def note(name: str, found: Seen) -> None:
            seen[name] = found
            accuracy = ["" if math.isnan(value) else f"{value:.3f}" for value in found[2:]]
            print("| " + " | ".join([name, f"{found.wall_s:.0f}", f"{found.cpu_s:.0f}", *accuracy]) + " |", flush=True)

        note("features, once", embed(work, quick=options.quick))
        for pooling in POOLINGS:
            changes = {"model.input": "features", "model.pooling": pooling}
            note(f"on features: {pooling}", measure(work, pooling, quick=options.quick, **changes))
        start = {"model.start": str(work / "attention" / "model"), **({} if options.quick else STARTED)}
        note("end to end from the features model", measure(work, "started", quick=options.quick, **start))
        note("end to end", measure(work, "pixels", quick=options.quick))
    if options.json:
        options.json.write_text(json.dumps(list(rows(seen)), indent=1))


def rows(seen: dict[str, Seen]) -> list[dict[str, Any]]:
    """Comparable rows; the time of features counts with each training on them."""
    once, peer = seen["features, once"].cpu_s, seen["end to end"]
    found = []
    for name, ours in seen.items():
        if name in ("features, once", "end to end"):
            continue
        spent = once + ours.cpu_s + (seen["on features: attention"].cpu_s if "from the" in name else 0)
        for unit, a, b in (("CPU s", spent, peer.cpu_s), ("test AUC", ours.slide_auc, peer.slide_auc)):
            found.append(
                {
                    "case": name,
                    "ours": a,
                    "peer": b,
                    "peer_name": "end to end",
                    "ratio": b / a if a else None,
                    "unit": unit,
                }
            )
    return found


if __name__ == "__main__":
    main()
