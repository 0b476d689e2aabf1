"""Half an hour of training in two processes while workers are killed; the model must be that of an undisturbed one.

    python benchmarks/soak.py [--minutes 30] [--epochs N] [--work DIR] [--seed S] [--json FILE]

`torchrun --nproc-per-node 2 -m wsi_ips train` on synthetic slides. At random moments, by turns at random: one process
is killed with `kill -9` (torchrun starts both again), everything is killed with `kill -9` (and started again), or
torchrun gets SIGTERM as from a scheduler (and is started again). Trainings follow each other until the time is up; the
last one then ends undisturbed. Each is then trained again without disturbance, and the weights are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import yaml
from safetensors.torch import load_file

from wsi_ips.pipeline.demo_slides import DEMO, make_slides

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1000"]
KINDS = ("one process", "everything", "SIGTERM")
BETWEEN_S = (15.0, 120.0)
"""Shortest and longest time from a start to the next disturbance; a state is saved once a minute."""
SLIDES = replace(
    DEMO, slides=24, size_px0=(6144, 4096), tissue_mm2=(1.2, 1.8), lesion_mm=(0.4, 0.8), split=(0.7, 0.3, 0.0)
)
RECIPE: dict[str, Any] = {
    "name": "soak",
    "manifest": "cohort/manifest.csv",
    "tissue": {"mpp": 16.0},
    "tiles": {"mpp": 2.0, "patch_px": 64},
    "model": {"encoder": "resnet18-1", "memory_size": 8, "heads": 2, "key_width": 8},
    "training": {"start_steps": 2, "batch_slides": 4, "weight_average": 0.9},
}


def recipe_of(work: Path, name: str, seed: int, epochs: int) -> Path:
    """A recipe with a run folder of its own; tiles are those of the folder `tiles`."""
    training = RECIPE["training"] | {"epochs": epochs}
    tiles = RECIPE["tiles"] | ({} if name == "tiles" else {"shared": "tiles"})
    path = work / f"{name}.yaml"
    changes = {"output": name, "seed": seed, "training": training, "tiles": tiles}
    path.write_text(yaml.safe_dump(RECIPE | changes), encoding="utf-8")
    return path


def start(recipe: Path) -> subprocess.Popen[bytes]:
    """Two processes that train."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with recipe.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [*TORCHRUN, "-m", "wsi_ips", "train", str(recipe)], stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def trainers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that torchrun started."""
    try:
        return [child for child in psutil.Process(process.pid).children() if "wsi_ips" in child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def disturb(process: subprocess.Popen[bytes], kind: str, rng: random.Random) -> bool:
    """Kill; whether there was something to kill."""
    found = trainers(process)
    if not found:
        return False
    if kind == "one process":
        rng.choice(found).kill()
    elif kind == "everything":
        below = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in below:
            child.kill()
    else:
        process.send_signal(signal.SIGTERM)
    return True


def trained(recipe: Path, rng: random.Random, until: float, counts: Counter[str], peaks: list[float]) -> int:
    """Train to the end, disturbed until then; how often it was started.

    A training that fails of itself is not started again: that would never end.
    """
    process, starts, is_disturbed = start(recipe), 1, False
    following = time.monotonic() + rng.uniform(*BETWEEN_S)
    while True:
        time.sleep(0.5)
        for child in trainers(process):
            try:
                peaks.append(child.memory_info().rss / 1e6)
            except psutil.NoSuchProcess:
                continue
        code = process.poll()
        if code == 0:
            return starts
        if code is not None:
            if not is_disturbed:
                raise SystemExit(f"undisturbed, it ended with {code}: see {recipe.with_suffix('.log')}")
            process, starts, is_disturbed = start(recipe), starts + 1, False
            following = time.monotonic() + rng.uniform(*BETWEEN_S)
        elif following < time.monotonic() < until:
            kind = rng.choice(KINDS)
            hit = disturb(process, kind, rng)
            counts[kind] += hit
            is_disturbed |= hit
            following = time.monotonic() + rng.uniform(*BETWEEN_S)


def epochs_of(folder: Path) -> list[int]:
    """The epochs that the log of figures tells of."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["epoch"] for line in lines]


def compared(work: Path, name: str, epochs: int) -> float:
    """Largest difference of any weight to the undisturbed training; figures of every epoch must be there once."""
    ours, theirs = (load_file(work / folder / "model" / "model.safetensors") for folder in (name, f"{name}-quiet"))
    assert ours.keys() == theirs.keys()
    assert epochs_of(work / name) == list(range(1, epochs + 1)), epochs_of(work / name)
    return max(float((ours[key].double() - theirs[key].double()).abs().max()) for key in ours)


def main() -> None:
    """Train, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rng, counts, peaks = random.Random(options.seed), Counter[str](), list[float]()
    with tempfile.TemporaryDirectory() as scratch:
        work = (options.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        make_slides(work / "cohort", SLIDES, seed=5)
        tiles = recipe_of(work, "tiles", options.seed, options.epochs)
        subprocess.run([sys.executable, "-m", "wsi_ips", "tile", str(tiles)], check=True, stdout=subprocess.DEVNULL)
        began = time.monotonic()
        until, names, starts = began + 60 * options.minutes, list[str](), 0
        while time.monotonic() < until:
            names.append(f"training{len(names)}")
            recipe = recipe_of(work, names[-1], options.seed + len(names), options.epochs)
            starts += trained(recipe, rng, until, counts, peaks)
            print(f"{names[-1]} done after {(time.monotonic() - began) / 60:.1f} min: {dict(counts)}", flush=True)
        minutes = (time.monotonic() - began) / 60
        differences = []
        for number, name in enumerate(names, 1):
            quiet = recipe_of(work, f"{name}-quiet", options.seed + number, options.epochs)
            trained(quiet, rng, 0.0, Counter(), [])
            differences.append(compared(work, name, options.epochs))
    restarts = counts["one process"] + starts - len(names)
    print(
        f"{minutes:.0f} min, {len(names)} trainings of {options.epochs} epochs, {sum(counts.values())} disturbances "
        f"({', '.join(f'{kind}: {counts[kind]}' for kind in KINDS)}), {restarts} restarts; largest difference of a "
        f"weight to the undisturbed trainings {max(differences):g}; largest process {max(peaks):.0f} MB"
    )
    if options.json:
        row = {"minutes": minutes, "trainings": len(names), "disturbances": dict(counts), "differences": differences}
        options.json.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
