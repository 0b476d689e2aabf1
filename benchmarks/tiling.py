"""Segment and tile one slide, whole process: ours, the bare minimum, and lazyslide where it is installed.

Slide: 40 000 x 40 000 px at 0.25 µm/px with three levels (1, 4, 16), tiled JPEG; and 20 000 x 20 000 px with one level.
Each contender runs in a process of its own, in turns; wall time is that of the process, imports and all; memory its
peak RSS. Ours is what `wsi-ips tile` does to a slide: open, identity, overview, tissue, flags, grid, pictures, mask,
index; not the runner around it.

    python benchmarks/tiling.py [--quick] [--turns N] [--peer PYTHON] [--json FILE]

``--peer`` is the Python of an environment with lazyslide; without it that column stays empty. Prints a table; with
--json also writes rows {case, ours, peer, peer_name, ratio, unit}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BEGUN = time.perf_counter()
MPP, PATCH, TARGET = 0.25, 256, 0.5


def ours(path: Path, folder: Path) -> dict[str, float]:
    """The tile stage on one slide."""
    from wsi_ips.config import Recipe
    from wsi_ips.manifest.slide_record import SlideRecord
    from wsi_ips.pipeline.tile_slide import tile_slide
    from wsi_ips.provenance import atomic_write_bytes
    from wsi_ips.slides import content_identity, open_slide
    from wsi_ips.tiles.store import write_index

    imported = time.perf_counter()
    recipe = Recipe.model_validate(
        {"output": folder, "manifest": folder / "none.csv", "tiles": {"mpp": TARGET, "patch_px": PATCH}}
    )
    record = SlideRecord(slide_id="slide", path=path)
    with open_slide(path) as reader:
        tiled = tile_slide(
            reader, record, recipe.tiling, slide_identity=content_identity(path), fingerprint="benchmark"
        )
    for name, content in tiled.files.items():
        atomic_write_bytes(folder / name, content)
    write_index(folder / "tiles.zarr", tiled.index)
    if "torch" in sys.modules:
        raise RuntimeError("tiling imported torch")
    return {"import_s": imported - BEGUN, "tiles": len(tiled.index)}


def steps(path: Path, _: Path) -> dict[str, float]:
    """Segmentation and gridding alone, against the read they stand on; all within one process, best of five."""
    from wsi_ips.config import TissueSection
    from wsi_ips.slides import open_slide, read_overview
    from wsi_ips.tiles.index import TileRules, build_index
    from wsi_ips.tissue.artifacts import flag_tiles
    from wsi_ips.tissue.segmentation import TissueRules, segment_tissue

    section, rules = TissueSection(), TissueRules()
    seconds = {"read": [], "segment": [], "grid": [], "flags": [], "bare": []}
    for _ in range(5):
        seconds["bare"].append(_timed(lambda: _low_level(path))[0])
        with open_slide(path) as reader:
            took, overview = _timed(lambda: read_overview(reader, section.mpp))
            seconds["read"].append(took)
            size = reader.info.size_px0
            took, mask = _timed(
                lambda: segment_tissue(overview.thumbnail, mpp=overview.mpp, px0_size=size, rules=rules)  # noqa: B023
            )
            seconds["segment"].append(took)
            took, index = _timed(lambda: build_index(reader.info, mask, TileRules(TARGET, PATCH)))  # noqa: B023
            seconds["grid"].append(took)
            seconds["flags"].append(_timed(lambda: flag_tiles(overview, mask, index.boxes_px0))[0])  # noqa: B023
    return {f"{name}_s": min(values) for name, values in seconds.items()}


def bare(path: Path, folder: Path) -> dict[str, float]:
    """The least one can do: decode the lowest level, Otsu on saturation, an integral image, a file of coordinates."""
    import numpy as np

    pixels = _low_level(path)
    high, low = pixels.max(2).astype(np.float32), pixels.min(2)
    saturation = ((high - low) / np.maximum(high, 1) * 255).astype(np.uint8)
    counts = np.bincount(saturation.ravel(), minlength=256).astype(float)
    weight, mean = counts.cumsum(), (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean[-1] * weight / weight[-1] - mean) ** 2 / (weight * (weight[-1] - weight))
    mask = saturation > int(np.nanargmax(between))
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    integral[1:, 1:] = mask.cumsum(0).cumsum(1)
    step = round(PATCH * TARGET / MPP / 16)
    ys, xs = np.arange(0, mask.shape[0] - step, step), np.arange(0, mask.shape[1] - step, step)
    area = (
        integral[ys[:, None] + step, xs + step] - integral[ys[:, None], xs + step]
        - integral[ys[:, None] + step, xs] + integral[ys[:, None], xs]
    )  # fmt: skip
    tiles = np.argwhere(area > 0.25 * step * step)
    np.save(folder / "bare.npy", tiles * step * 16)
    return {"tiles": len(tiles)}


def lazyslide(path: Path, folder: Path) -> dict[str, float]:
    """Lazyslide's own way: find_tissues, tile_tissues, save."""
    import lazyslide as zs
    from wsidata import open_wsi

    imported = time.perf_counter()
    wsi = open_wsi(str(path), store=str(folder / "lazy.zarr"))
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, PATCH, mpp=TARGET)
    wsi.write()
    return {"import_s": imported - BEGUN, "tiles": len(wsi["tiles"])}


def _low_level(path: Path):
    """The lowest level, its JPEG tiles decoded one by one."""
    import numpy as np
    import simplejpeg
    import tifffile

    with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
        page = [p for p in tiff.pages if p.is_tiled][-1]
        side, columns = page.tilewidth, -(-page.imagewidth // page.tilewidth)
        rows = -(-page.imagelength // side)
        out = np.empty((rows * side, columns * side, 3), np.uint8)
        for number, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            file.seek(offset)
            y, x = divmod(number, columns)
            out[y * side : (y + 1) * side, x * side : (x + 1) * side] = simplejpeg.decode_jpeg(file.read(count), "RGB")
    return out[: page.imagelength, : page.imagewidth]


def _timed(work):
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


CONTENDERS = {"ours": ours, "bare": bare, "lazyslide": lazyslide, "steps": steps}


def in_child(name: str, path: Path, python: str) -> dict[str, float]:
    """Run a contender in a process of its own; its figures, with ``wall_s`` and ``rss_mb``."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    if python == sys.executable:
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    else:
        environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as folder:
        command = [python, __file__, "--child", name, str(path), folder]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        wall = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "wall_s": wall}


def write_slides(folder: Path, *, quick: bool) -> tuple[Path, Path]:
    """The slide with a pyramid, and the one without."""
    import numpy as np

    from wsi_ips.geometry import Size
    from wsi_ips.slides.synthetic_slide import EncodedLevel, _Painter, _pyramid, write_aperio
    from wsi_ips.slides.synthetic_textures import Stain
    from wsi_ips.slides.synthetic_tissue import SyntheticSlide, plan_layout

    plain = Stain(1.0, 1.0, ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), (240, 239, 241))
    paths = []
    for name, side, tissue_mm2 in (("pyramid", 40_000, 35.0), ("single", 20_000, 9.0)):
        side = side // 4 if quick else side  # noqa: PLW2901
        plan = SyntheticSlide(
            name, 5, Size(side, side), MPP, tissue_mm2 / (16 if quick else 1), blobs=(), stain=plain, pen=(20, 110, 60)
        )
        rng = np.random.default_rng([plan.seed, 7])
        levels, thumbnail = _pyramid(_Painter(plan, plan_layout(plan, rng), rng))
        kept: list[EncodedLevel] = levels[:1] if name == "single" else levels[:3]
        path = folder / f"{name}.svs"
        write_aperio(path, kept, thumbnail=thumbnail, mpp=MPP)
        paths.append(path)
    return paths[0], paths[1]


def main() -> None:
    """Measure in turns; medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="slides of a sixteenth of the area, one turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--peer", help="Python of an environment with lazyslide")
    parser.add_argument("--json", type=Path, help="write rows to this file")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, path, folder = arguments.child
        figures = CONTENDERS[name](Path(path), Path(folder))
        figures["rss_mb"] = _peak_rss_mb()
        print(json.dumps(figures))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        pyramid, single = write_slides(Path(folder), quick=arguments.quick)
        jobs = {"ours": (pyramid, sys.executable), "bare": (pyramid, sys.executable)}
        if arguments.peer:
            jobs["lazyslide"] = (pyramid, arguments.peer)
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
        for _ in range(1 if arguments.quick else arguments.turns):
            for name, (path, python) in jobs.items():
                seen[name].append(in_child(name, path, python))
        print(f"{'':12s} {'wall s':>7s} {'range':>13s} {'import s':>9s} {'RSS MB':>7s} {'tiles':>6s}  wall, ours = 1")
        for name, runs in seen.items():
            walls = [run["wall_s"] for run in runs]
            ratio = statistics.median(o["wall_s"] / t["wall_s"] for o, t in zip(seen["ours"], runs, strict=True))
            rss, imports = max(run["rss_mb"] for run in runs), statistics.median(r.get("import_s", 0) for r in runs)
            spread = f"{min(walls):.2f}-{max(walls):.2f}"
            print(
                f"{name:12s} {statistics.median(walls):7.2f} {spread:>13s} {imports:9.2f} {rss:7.0f} "
                f"{runs[0]['tiles']:6.0f}  {1 / ratio:.2f}"
            )
            if name != "ours":
                rows.append(_row(f"whole process against {name}", seen["ours"], runs, name, ratio))
        parts = in_child("steps", pyramid, sys.executable)
        work = parts["segment_s"] + parts["grid_s"]
        print(
            "within a process, ms: "
            + ", ".join(f"{name[:-2]} {1e3 * value:.0f}" for name, value in parts.items() if name in STEPS)
            + f"; segment + grid = {work / parts['bare_s']:.2f} x the bare read of the lowest level"
        )
        rows.append(
            {
                "case": "segment + grid against the bare read",
                "ours": round(work, 4),
                "peer": round(parts["bare_s"], 4),
                "peer_name": "bare read",
                "ratio": round(work / parts["bare_s"], 3),
                "unit": "s",
            }
        )
        alone = in_child("ours", single, sys.executable)
        print(f"one level only: {alone['wall_s']:.2f} s, {alone['rss_mb']:.0f} MB, {alone['tiles']:.0f} tiles")
        rows.append(
            {
                "case": "one level only, peak RSS",
                "ours": round(alone["rss_mb"], 1),
                "peer": 300,
                "peer_name": "limit",
                "ratio": round(alone["rss_mb"] / 300, 3),
                "unit": "MB",
            }
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _peak_rss_mb() -> float:
    """Peak of this program alone: ``getrusage`` also counts what the parent had when it forked."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


STEPS = ("bare_s", "read_s", "segment_s", "grid_s", "flags_s")


def _row(case: str, own: list[dict[str, float]], peer: list[dict[str, float]], name: str, ratio: float):
    return {
        "case": case,
        "ours": round(statistics.median(run["wall_s"] for run in own), 3),
        "peer": round(statistics.median(run["wall_s"] for run in peer), 3),
        "peer_name": name,
        "ratio": round(ratio, 3),
        "unit": "s",
    }


if __name__ == "__main__":
    main()
