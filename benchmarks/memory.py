"""Memory of prediction against the number of tiles: whole processes, one slide each.

Ours streams; the peer reads all tiles of the slide into one array before it scores them, as published
implementations of Iterative Patch Selection do with their tensors. Both use the same slide, the same
untrained network and the same chunk size, in one run; each figure is the median of three processes.

    python benchmarks/memory.py [--quick] [--json FILE]

Prints a table; with --json also writes rows {case, ours, peer, peer_name, ratio, unit}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from wsi_ips.config import ComputeSection
from wsi_ips.geometry import Size
from wsi_ips.slides import open_slide, read_thumbnail
from wsi_ips.slides.synthetic_slide import write_synthetic_slide
from wsi_ips.slides.synthetic_textures import Stain
from wsi_ips.slides.synthetic_tissue import PlannedBlob, SyntheticSlide
from wsi_ips.tiles.index import IndexOrigin, TileRules, build_index
from wsi_ips.tiles.store import read_index, write_index
from wsi_ips.tiles.stream import SlideTiles, read_tiles
from wsi_ips.tissue.segmentation import segment_tissue

PATCH_PX, MPP = 64, 2.0
REPEATS = 3
TILE_MM2 = (PATCH_PX * MPP / 1000) ** 2
STAIN = Stain(1.0, 1.0, ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), (240, 239, 242))


def make_slide(folder: Path, tiles: int) -> int:
    """Write a slide of about so many tiles and its index; the exact number."""
    area_mm2 = tiles * TILE_MM2 * 1.02
    side_px0 = int((area_mm2 * 3) ** 0.5 * 2000)
    plan = SyntheticSlide(
        slide_id=str(tiles),
        seed=tiles,
        size_px0=Size(int(side_px0 * 1.2), side_px0),
        mpp=0.5,
        tissue_mm2=area_mm2,
        blobs=(PlannedBlob("tumour", 0.5),),
        stain=STAIN,
    )
    path = folder / f"{tiles}.svs"
    write_synthetic_slide(plan, path)
    with open_slide(path) as reader:
        thumbnail, mpp = read_thumbnail(reader, 16.0)
        mask = segment_tissue(thumbnail, mpp=mpp, px0_size=reader.info.size_px0)
        index = build_index(
            reader.info,
            mask,
            TileRules(MPP, PATCH_PX, PATCH_PX, 0.25),
            IndexOrigin(str(tiles)),
        )
    write_index(folder / "tiles.zarr", index)
    return len(index)


def measure(folder: Path, tiles: int, *, streaming: bool) -> None:
    """In a process of its own: predict one slide, print its peak memory in MB."""
    import torch

    from wsi_ips.inference.slide_prediction import predict_slide
    from wsi_ips.model.checkpoint_card import NetSettings
    from wsi_ips.model.encoder_families import build_encoder, encoder_spec
    from wsi_ips.model.net import IpsNet, to_float
    from wsi_ips.provenance import peak_rss_mb
    from wsi_ips.scanning import ScanOptions

    spec = encoder_spec("resnet18-2", norm="auto", has_weights=False)
    net = IpsNet(build_encoder(spec), NetSettings(heads=4, key_width=32)).eval()
    compute = ComputeSection()
    request = SlideTiles(
        slot=0,
        slide_id=str(tiles),
        index=read_index(folder / "tiles.zarr", str(tiles)),
        open=lambda: open_slide(folder / f"{tiles}.svs"),
        tiles=None,
    )
    if streaming:
        predict_slide(net, request, ScanOptions(16, compute))
    else:
        whole = torch.from_numpy(read_tiles(request))
        with torch.inference_mode():
            for start in range(0, len(whole), compute.chunk_size):
                net.score(to_float(whole[start : start + compute.chunk_size]), with_probability=True)
    sys.stdout.write(f"{peak_rss_mb():.1f}\n")


def in_process(folder: str, tiles: int, how: str) -> float:
    """Peak memory of a fresh process, MB."""
    command = [sys.executable, __file__, "--measure", folder, str(tiles), how]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 and 2 000 tiles only")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, tiles, how = options.measure
        measure(Path(folder), int(tiles), streaming=how == "stream")
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for wanted in (500, 2_000) if options.quick else (1_000, 4_000, 16_000):
            tiles = make_slide(Path(name), wanted)
            repeats = 1 if options.quick else REPEATS
            peak = [
                statistics.median(in_process(name, wanted, how) for _ in range(repeats)) for how in ("stream", "whole")
            ]
            rows.append(
                {
                    "case": f"predict {tiles} tiles of {PATCH_PX} px",
                    "ours": peak[0],
                    "peer": peak[1],
                    "peer_name": "all tiles in memory",
                    "ratio": round(peak[0] / peak[1], 3),
                    "unit": "MB peak RSS",
                }
            )
            print("{case:34} ours {ours:8.1f}  {peer_name} {peer:8.1f}  ratio {ratio:.2f}  {unit}".format(**rows[-1]))
    ours = np.array([row["ours"] for row in rows])
    print(f"largest difference of ours between slides: {np.ptp(ours) / ours.min():.1%}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
