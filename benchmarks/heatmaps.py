"""Cost of maps and hand-off: the package of a slide with 100 000 tiles, its GeoJSON, its overlay.

Slide: about 100 000 x 90 000 px at 0.25 µm/px (an Aperio file, made here), tissue of 391 blocks of one square
millimetre with 256 tiles of 256 px each; tiled by `wsi-ips tile`. Scores are random: smooth noise, of which one tile in
twenty reaches the threshold. Model and score table are in the run folder as after `wsi-ips predict`.

- package: `wsi-ips heatmap` in its own process: two overlays, OME-TIFF, GeoJSON, ASAP, lesions, gallery, all read back
  and checked; wall time of the process including imports, and its peak RSS.
- GeoJSON of every tile (CPU time), written alone, against a list of features given to `json.dump` and `gzip`.
- overlay (CPU time): raster and colours on a view of 1600 px, against a loop that adds every tile into an image,
  colours it and blends it, tile by tile, as heatmap scripts do (written for this comparison).

    python benchmarks/heatmaps.py [--quick] [--turns N] [--folder DIR] [--json FILE]

``--folder`` keeps the slide for the next call. Prints a table; with --json also writes rows {case, ours, peer,
peer_name, ratio, unit}; where a limit is required, the peer is the limit.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MPP, BLOCK = 0.25, 16
"""µm/px of level 0; stored tiles along a side of a block, which on the coarsest level is one tile."""
BLOCKS, QUICK_BLOCKS = (25, 22, 391), (8, 7, 36)
"""Columns, rows, and how many blocks are tissue: 100 096 tiles, or with --quick 9 216."""
LIMITS = {"package_s": 10.0, "package_mb": 1000.0, "geojson_s": 4.0, "overlay_ratio": 10.0}
PERIOD = 8


def write_slide(path: Path, columns: int, rows: int, blocks: int) -> None:
    """A pyramid (1, 4, 16) whose levels show the same: texture that repeats, so that few tiles are stored."""
    import numpy as np
    from PIL import Image

    from wsi_ips.geometry import Size
    from wsi_ips.slides.synthetic_slide import EncodedLevel, encode_jpeg, write_aperio
    from wsi_ips.slides.synthetic_textures import TILE_PX, Stain, make_texture

    stain = Stain(1.0, 1.0, ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), (240, 239, 242))
    rng = np.random.default_rng(3)
    images = [stain.colour(make_texture(name, rng, mpp=MPP)) for name in ("lymphoid", "stroma", "tumour")]
    at = range(PERIOD)
    texture = np.concatenate(
        [np.concatenate([images[(x + y) % 3][(3 * y + x) % len(images[0])] for x in at], 1) for y in at]
    )
    y, x = np.mgrid[:rows, :columns]
    far = np.hypot((x - columns / 2 + 0.5) / columns, (y - rows / 2 + 0.5) / rows)
    tissue = np.zeros(rows * columns, bool)
    tissue[np.argsort(far, axis=None, kind="stable")[:blocks]] = True
    tissue = tissue.reshape(rows, columns)
    glass = encode_jpeg(np.full((TILE_PX, TILE_PX, 3), stain.glass, np.uint8))
    levels, size = [], Size(columns * BLOCK * TILE_PX, rows * BLOCK * TILE_PX)
    for factor in (1, 4, 16):
        picture = np.asarray(Image.fromarray(texture).reduce(factor))
        picture = np.tile(picture, (max(1, TILE_PX // len(picture)),) * 2 + (1,))
        period, per_block = len(picture) // TILE_PX, BLOCK // factor
        tiles = [
            encode_jpeg(picture[r * TILE_PX : (r + 1) * TILE_PX, c * TILE_PX : (c + 1) * TILE_PX])
            for r in range(period)
            for c in range(period)
        ]
        fine = tissue.repeat(per_block, 0).repeat(per_block, 1)
        r, c = np.indices(fine.shape)
        place = np.where(fine, 1 + (r % period) * period + c % period, 0).astype(np.int32)
        levels.append(EncodedLevel(Size(size.width // factor, size.height // factor), place, [glass, *tiles]))
    thumbnail = np.where(tissue.repeat(8, 0).repeat(8, 1)[..., None], 180, 240).astype(np.uint8).repeat(3, 2)
    write_aperio(path, levels, thumbnail=thumbnail, mpp=MPP)


def make_run(folder: Path, *, quick: bool) -> Path:
    """Make a run folder with tiles, model and scores, ready for `wsi-ips heatmap`; return its recipe."""
    import numpy as np
    from scipy import ndimage, special

    from wsi_ips.config import load_recipe
    from wsi_ips.inference.slide_scores import SlideScores, write_scores
    from wsi_ips.labels import Task
    from wsi_ips.model.checkpoint import build_net, save_checkpoint
    from wsi_ips.model.checkpoint_card import EncoderSpec, ModelCard, checkpoint_fingerprint
    from wsi_ips.pipeline import Run, run_stage

    recipe_file = folder / "recipe.yaml"
    if (folder / "made").exists():
        return recipe_file
    write_slide(folder / "slide.svs", *(QUICK_BLOCKS if quick else BLOCKS))
    (folder / "manifest.csv").write_text("slide_id,path,label,split\nlarge,slide.svs,tumor,test\n")
    recipe_file.write_text("output: out\nmanifest: manifest.csv\ntiles: {mpp: 0.25, patch_px: 256}\n")
    recipe = load_recipe(recipe_file)
    run_stage(recipe, "tile")
    task = Task("label", ("normal", "tumor"))
    encoder = EncoderSpec("resnet18-1", norm="group", frozen_statistics=False)
    card = ModelCard(
        model_id="bench-0123",
        tasks=(task,),
        encoder=encoder,
        heads=1,
        key_width=8,
        dropout=0.0,
        memory_size=16,
        patch_mpp=0.25,
        patch_px=256,
        fingerprint="benchmark",
    )
    with Run.open(recipe) as run:
        save_checkpoint(run.folder.model, build_net(card), card)
        record, index = run.slides.records[0], run.slides.index(run.slides.records[0])
        rng = np.random.default_rng(0)
        column, row = ((v - v.min()) // 256 for v in (index.x, index.y))
        field = ndimage.gaussian_filter(rng.normal(size=(row.max() + 1, column.max() + 1)), 4)[row, column]
        noisy = field / field.std() + rng.normal(0, 0.3, len(index))
        positive = special.expit(4 * (noisy - np.quantile(noisy, 0.95))).astype(np.float32)
        scores = SlideScores(
            slide_id=record.slide_id,
            attention_logits=noisy.astype(np.float32).reshape(-1, 1, 1),
            tile_probability=np.stack([1 - positive, positive], axis=1),
            kept=np.argsort(-noisy, kind="stable")[:16].astype(np.int32),
            kept_embeddings=np.zeros((16, 64), np.float32),
            tasks=(task,),
            probabilities=((0.05, 0.95),),
            seconds=1.0,
            fingerprint=run.predictions.fingerprint(record, checkpoint_fingerprint(run.folder.model)),
        )
        write_scores(run.folder.scores, scores)
    (folder / "made").touch()
    return recipe_file


def package(recipe_file: Path) -> dict[str, float]:
    """Do what `wsi-ips heatmap` does to the slide."""
    from wsi_ips.config import load_recipe
    from wsi_ips.pipeline import run_stage

    recipe = load_recipe(recipe_file)
    run = run_stage(recipe, "heatmap")
    state = next(iter(run.states))
    if state.state != "ok":
        raise SystemExit(f"the slide failed: {state.reason}")
    facts = json.loads((run.folder.handoff("large") / "package.json").read_text())
    files = {entry["name"].removeprefix("large"): entry["bytes"] / 1e6 for entry in facts["files"]}
    return {"tiles": facts["tiles"], "lesions": facts["lesions"], **{f"MB{name}": v for name, v in files.items()}}


def maps_of(recipe_file: Path):
    """Return the scores as the formats get them, and the run."""
    from wsi_ips.config import load_recipe
    from wsi_ips.inference.slide_scores import read_scores
    from wsi_ips.pipeline import Run
    from wsi_ips.pipeline.heatmap_stage import MapSource, score_maps

    run = Run.open(load_recipe(recipe_file))
    record = run.slides.records[0]
    scores = read_scores(run.folder.scores, record.slide_id)
    return score_maps(run.maps, run.slides.index(record), MapSource(record, scores, "bench-0123", "f")), run


def geojson(recipe_file: Path, turns: int) -> tuple[list[float], list[float], dict[str, float]]:
    """Return seconds of ours and of the plain way, in turns, and figures of the file."""
    from wsi_ips.results.handoff_package import Material, PackageContent
    from wsi_ips.results.qupath_geojson import write_geojson

    maps, run = maps_of(recipe_file)
    content, tiles = PackageContent.of(maps, Material()), maps.best_first()
    path, ours, plain = run.folder.root / "all.geojson.gz", [], []
    for _ in range(turns):
        ours.append(_timed(lambda: write_geojson(path, content, tiles)))
        plain.append(_timed(lambda: plain_geojson(path.with_name("plain.geojson.gz"), maps, tiles)))
    text = gzip.decompress(path.read_bytes())
    count = len(json.loads(text)["features"])
    return ours, plain, {"features": count, "MB": len(text) / 1e6, "MB packed": path.stat().st_size / 1e6}


def plain_geojson(path: Path, maps, tiles) -> None:
    """Write a list of features with json.dump into gzip."""
    import uuid

    width, height = maps.footprint_px0
    features = []
    for row in tiles.tolist():
        x, y = float(maps.x[row] - maps.bounds.x), float(maps.y[row] - maps.bounds.y)
        ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
        measured = {name: float(values[row]) for name, values in maps.scores.items()}
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid4()),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {
                    "objectType": "tile",
                    "classification": {"name": "tumor", "color": [200, 0, 0]},
                    "measurements": measured,
                },
            }
        )
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump({"type": "FeatureCollection", "features": features}, file)


def overlay(recipe_file: Path, turns: int) -> tuple[list[float], list[float]]:
    """Return seconds of ours and of the loop, in turns, on the same pixels."""
    from wsi_ips.results.overlay import colour_map
    from wsi_ips.results.score_raster import tile_raster
    from wsi_ips.results.slide_heatmaps import view_of

    maps, run = maps_of(recipe_file)
    with run.slides.opener(run.slides.records[0])() as reader:
        view = view_of(reader, run.slides.index(run.slides.records[0]), 4.0, None)
    run.slides.pool.close()
    ours, loop = [], []

    def drawn():
        raster = tile_raster(
            maps.x,
            maps.y,
            maps.score,
            bounds=maps.grid,
            stride_px0=maps.stride_px0,
            footprint_px0=maps.footprint_px0,
        )
        return colour_map(view, raster, kind="probability", opacity=0.6)

    for _ in range(turns):
        ours.append(_timed(drawn))
        loop.append(_timed(lambda: blended(view, maps)))
    return ours, loop


def blended(view, maps):
    """Add up the scores tile by tile, then colour and blend each tile's block."""
    import matplotlib
    import numpy as np

    colours, scale = matplotlib.colormaps["viridis"], view.px0_per_px
    width, height = (max(1, round(side / step)) for side, step in zip(maps.footprint_px0, scale, strict=True))
    total, count = (np.zeros(view.pixels.shape[:2]) for _ in range(2))
    corners = [
        (int((x - view.area_px0.x) / scale.x), int((y - view.area_px0.y) / scale.y))
        for x, y in zip(maps.x.tolist(), maps.y.tolist(), strict=True)
    ]
    for (x, y), score in zip(corners, maps.score.tolist(), strict=True):
        total[y : y + height, x : x + width] += score
        count[y : y + height, x : x + width] += 1
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    out = view.pixels.copy()
    for x, y in corners:
        block = mean[y : y + height, x : x + width]
        coloured = (colours(block) * 255)[..., :3]
        patch = out[y : y + height, x : x + width]
        out[y : y + height, x : x + width] = (0.4 * patch + 0.6 * coloured).astype(np.uint8)
    return out


def _timed(work) -> float:
    """Return the CPU seconds of work in one thread, which other load on the machine changes little."""
    began = time.process_time()
    work()
    return time.process_time() - began


def in_child(recipe_file: Path) -> dict[str, float]:
    """Make the package in its own process, from tiles and scores alone."""
    for name in ("heatmaps", "handoff"):
        shutil.rmtree(recipe_file.parent / "out" / name, ignore_errors=True)
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).parents[1]))
    began = time.perf_counter()
    command = [sys.executable, __file__, "--child", str(recipe_file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    wall = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"package failed:\n{done.stderr[-3000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "wall_s": wall}


def _peak_rss_mb() -> float:
    """Return the peak of this program alone; ``getrusage`` also counts memory of the parent at the fork."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def _row(case: str, ours: float, peer: float, peer_name: str, unit: str, ratio: float | None = None):
    ratio = ours / peer if ratio is None else ratio
    return dict(
        zip(
            ("case", "ours", "peer", "peer_name", "ratio", "unit"),
            (case, round(ours, 3), round(peer, 3), peer_name, round(ratio, 3), unit),
            strict=True,
        )
    )


def measure(folder: Path, *, quick: bool, turns: int) -> list[dict[str, object]]:
    """Return all rows, medians over the turns; a ratio is the median of the turns' ratios, peer over ours."""
    recipe_file = make_run(folder, quick=quick)
    runs = [in_child(recipe_file) for _ in range(turns)]
    wall, memory = (statistics.median(run[name] for run in runs) for name in ("wall_s", "rss_mb"))
    about = f"{runs[0]['tiles']} tiles, {runs[0]['lesions']} lesions"
    print(f"package of {about}; MB: {', '.join(f'{k[2:]} {v:.2f}' for k, v in runs[0].items() if k[:2] == 'MB')}")
    work, cpu = (statistics.median(run[name] for run in runs) for name in ("work_s", "cpu_s"))
    print(f"  after the start {work:.2f} s")
    rows = [
        _row(f"package, {about}, whole process", wall, LIMITS["package_s"], "limit", "s"),
        _row("package, processor time of the process", cpu, LIMITS["package_s"], "limit", "cpu s"),
        _row("package, peak RSS", memory, LIMITS["package_mb"], "limit", "MB"),
    ]
    ours, plain, facts = geojson(recipe_file, turns)
    print("GeoJSON: " + ", ".join(f"{name} {value:.4g}" for name, value in facts.items()))
    ratio = statistics.median(p / o for o, p in zip(ours, plain, strict=True))
    rows.append(_row("GeoJSON of every tile", statistics.median(ours), LIMITS["geojson_s"], "limit", "cpu s"))
    rows.append(
        _row("GeoJSON of every tile", statistics.median(ours), statistics.median(plain), "json.dump", "cpu s", ratio)
    )
    ours, loop = overlay(recipe_file, turns)
    ratio = statistics.median(p / o for o, p in zip(ours, loop, strict=True))
    rows.append(
        _row(
            "overlay, raster and colours", statistics.median(ours), statistics.median(loop), "tile loop", "cpu s", ratio
        )
    )
    return rows


def main() -> None:
    """Measure in turns; medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the tiles, one turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where slide and results go, and stay")
    parser.add_argument("--json", type=Path, help="write rows to this file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        imported = time.perf_counter()
        figures = package(arguments.child)
        figures |= {"work_s": time.perf_counter() - imported, "cpu_s": time.process_time(), "rss_mb": _peak_rss_mb()}
        print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        rows = measure(folder, quick=arguments.quick, turns=1 if arguments.quick else arguments.turns)
    print(f"\n{'case':52s} {'ours':>9s} {'peer':>9s} {'unit':5s} {'ratio':>7s}  peer")
    for row in rows:
        print(
            f"{row['case']:52s} {row['ours']:9.3f} {row['peer']:9.3f} {row['unit']:5s} {row['ratio']:7.2f}  "
            f"{row['peer_name']}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
