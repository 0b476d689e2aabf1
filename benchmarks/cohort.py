"""A cohort of small slides, some of them broken in six ways: finished, named, flat in memory, both cores at work.

Then the same cohort again, killed with `kill -9` five times at random and resumed: bit for bit the same, no slide done
twice after it was committed, nothing lost.

    python benchmarks/cohort.py [--quick] [--slides N] [--json FILE]

Prints a table; with --json also writes rows {case, ours, peer, peer_name, ratio, unit}. Cores busy: CPU time of all our
processes over elapsed time and cores; where other programs run, they take from it, so the time that nobody used is
told beside.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import yaml
from support.small_slides import WAYS, write_cohort

ROOT = Path(__file__).parents[1]
KILLS = 5
SAMPLE_S = 0.5
RECIPE = {
    "manifest": "manifest.csv",
    "tissue": {"mpp": 8.0, "min_area_um2": 10_000},
    "tiles": {"mpp": 1.0, "patch_px": 64},
    "compute": {"worker_memory_gb": 0.6},
}


class Watch:
    """Memory of a process and of those beneath it, and what the machine did meanwhile."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.main_mb: list[float] = []
        self.worker_mb: list[float] = []
        before, began = psutil.cpu_times(), time.monotonic()
        main = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                self.main_mb.append(main.memory_info().rss / 1e6)
                sizes = [child.memory_info().rss / 1e6 for child in main.children()]
                self.worker_mb.append(float(np.median(sizes)) if sizes else float("nan"))
            except psutil.Error:
                pass
            time.sleep(SAMPLE_S)
        self.seconds = time.monotonic() - began
        after = psutil.cpu_times()
        whole = sum(after[:8]) - sum(before[:8])
        self.idle_share = (after.idle + after.iowait - before.idle - before.iowait) / whole


def command(folder: Path, output: str) -> list[str]:
    """`wsi-ips tile` on the cohort, into a folder of that name."""
    (folder / f"{output}.yaml").write_text(yaml.safe_dump(RECIPE | {"output": output}))
    return [sys.executable, "-c", "from wsi_ips.cli import main; main()", "tile", str(folder / f"{output}.yaml")]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a command whose words nobody needs."""
    return subprocess.Popen(arguments, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)


def digest(store: Path) -> dict[str, str]:
    """Of each slide's files."""
    found = {}
    for slide in sorted(p for p in store.iterdir() if p.name[0] != "."):
        total = hashlib.sha256()
        for file in sorted(p for p in slide.rglob("*") if p.is_file()):
            total.update(file.relative_to(slide).as_posix().encode() + file.read_bytes())
        found[slide.name] = total.hexdigest()
    return found


def commits(store: Path) -> dict[str, int]:
    """When each slide was committed: the rename gives its folder a new inode, which no second commit shares."""
    if not store.is_dir():
        return {}
    return {p.name: (p / "zarr.json").stat().st_ino for p in store.iterdir() if p.name[0] != "."}


def undisturbed(folder: Path, broken: dict[str, str], slides: int) -> list[dict[str, object]]:
    """One run from end to end."""
    before = psutil.Process().cpu_times()
    process = start(command(folder, "whole"))
    watch = Watch(process)
    after = psutil.Process().cpu_times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    table = pd.read_csv(folder / "whole" / "slides.csv", keep_default_na=False).set_index("slide_id")
    failed = table[table["state"] == "failed"]
    right = [name for name, way in broken.items() if name in failed.index and _names(failed, name, way)]
    for name in sorted(set(broken) ^ set(failed.index)) + sorted(set(broken) - set(right)):
        print(f"  {name} ({broken.get(name, 'good')}): {table.loc[name, 'state']} {table.loc[name, 'reason']}")
    quarter = max(1, len(watch.main_mb) // 4)
    parts = {"main process": watch.main_mb, "a worker, median": watch.worker_mb}
    rate = slides / watch.seconds
    busy = cpu_s / (psutil.cpu_count() * watch.seconds)
    print(f"  {slides} slides in {watch.seconds:.0f} s, {rate:.1f} slides/s; exit code {process.returncode}")
    rows = [
        row("slides with one final state", int((table["state"] != "pending").sum()), slides, "slides", "slides"),
        row("broken slides named with the right reason", len(right), len(broken), "broken slides", "slides"),
        row("good slides that failed", len(set(failed.index) - set(broken)), 0, "wanted", "slides"),
        row("cores busy with our processes", round(busy, 3), 0.9, "wanted", "share of all cores"),
        row("cores that nobody used meanwhile", round(watch.idle_share, 3), 0.1, "at most", "share of all cores"),
    ]
    for name, values in parts.items():
        first, last = np.nanmedian(values[quarter : 2 * quarter]), np.nanmedian(values[-quarter:])
        rows.append(row(f"resident memory, {name}: last quarter", round(last), round(first), "second quarter", "MB"))
    return rows


def _names(failed: pd.DataFrame, name: str, way: str) -> bool:
    """Whether the reason names the slide and what is wrong with it."""
    reason = str(failed.loc[name, "reason"])
    if way in ("cut", "spoiled"):
        return name in reason and any(word in reason for word in ("cannot be read", "damaged", "no reader"))
    return name in reason and WAYS[way] in reason


def killed(folder: Path, slides: int) -> list[dict[str, object]]:
    """The same cohort, killed at random moments."""
    store, rng, twice, survivors = folder / "killed" / "tiles.zarr", random.Random(1), 0, 0
    arguments, known = command(folder, "killed"), {}
    marks = sorted(rng.sample(range(slides // 20, slides * 9 // 10), KILLS))
    for mark in marks:
        process = start(arguments)
        while len(commits(store)) < mark and process.poll() is None:
            time.sleep(0.02)
        beneath = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(beneath, timeout=30)
        survivors += len(alive)
        now = commits(store)
        twice += sum(known[name] != now.get(name) for name in known)
        known = now
    start(arguments).wait()
    now = commits(store)
    twice += sum(known[name] != now.get(name) for name in known)
    one, other = digest(folder / "whole" / "tiles.zarr"), digest(store)
    same = sum(other.get(name) == value for name, value in one.items())
    facts = ["slide_id", "state", "reason", "reader", "mpp", "tiles", "tissue_mm2"]
    tables = [pd.read_csv(folder / name / "slides.csv", keep_default_na=False)[facts] for name in ("whole", "killed")]
    tables = [table.assign(reason=table["reason"].str.replace(r"\d+ MB of", "N MB of", regex=True)) for table in tables]
    equal = int((tables[0].fillna(-1) == tables[1].fillna(-1)).all(axis=1).sum())
    return [
        row(f"indexes bit-identical after {KILLS} kills", same, len(one), "undisturbed", "slides"),
        row("indexes that are in one run only", len(set(one) ^ set(other)), 0, "wanted", "slides"),
        row("rows of states equal", equal, slides, "undisturbed", "slides"),
        row("slides done again after they were committed", twice, 0, "wanted", "slides"),
        row("processes that outlived the killed one", survivors, 0, "wanted", "processes"),
    ]


def row(case: str, ours: float, peer: float, peer_name: str, unit: str) -> dict[str, object]:
    """One line of the table."""
    ratio = round(ours / peer, 3) if peer else None
    return {"case": case, "ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio, "unit": unit}


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 slides, 12 of them broken")
    parser.add_argument("--slides", type=int, help="number of slides, one in fifty broken")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    slides = options.slides or (100 if options.quick else 2_000)
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        broken = write_cohort(Path(name), slides, 12 if options.quick else slides // 50)
        print(f"  {slides} slides written in {time.monotonic() - began:.0f} s, {len(broken)} of them broken")
        rows = undisturbed(Path(name), broken, slides) + killed(Path(name), slides)
    for entry in rows:
        print("{case:48} {ours:>8}  {peer_name:>16} {peer:>8}  {unit}".format(**entry))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
