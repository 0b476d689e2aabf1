"""Speed of the encoder in the scan on one thread: plain PyTorch against channels last, the fused scan and int8.

The peer is the same network run eagerly in float32 with PyTorch's usual memory layout. All ways get the same patches in
turn, round after round; the median counts. Weights are untrained, with the batch statistics of other patches, unless
--weights names a file. Int8 is calibrated on 64 patches; its error, the correlation of its attention scores and the
overlap of the best quarter are taken on others. Without the extra `int8` its rows are left out.

    python benchmarks/encoder_speed.py [--quick] [--json FILE] [--textures DIR] [--encoder NAME] [--weights FILE]

Prints a table; with --json also writes rows {case, ours, peer, peer_name, ratio, unit}.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from wsi_ips.model.fused import scan_encoder

from wsi_ips.errors import RecipeError
from wsi_ips.model import IpsNet, build_encoder, encoder_spec
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.int8 import Int8Exporter, compare
from wsi_ips.model.net import to_float

TEXTURES = Path(os.environ["WSI_IPS_DATA"]) / "textures" if "WSI_IPS_DATA" in os.environ else None
PATCH_PX, PATCHES_PER_CALL, CALIBRATED = 224, 32, 64
Row = dict[str, Any]


def patches_of(folder: Path | None) -> tuple[Tensor, str]:
    """Patches in shuffled order, (n, 3, h, w), and what they are."""
    found = folder.glob("*/*") if folder else ()
    files = sorted(p for p in found if p.parent.name in ("normal", "tumor", "lymphoid"))
    if not files:
        rng = np.random.default_rng(0)
        shape = (160, PATCH_PX, PATCH_PX, 3)
        noise = rng.uniform(60, 220, (160, 1, 1, 3)) + rng.normal(0, 30, shape)
        return to_float(torch.from_numpy(noise.clip(0, 255).astype(np.uint8))), "noise"
    cut = np.concatenate([_squares(np.asarray(Image.open(file).convert("RGB"))) for file in files])
    order = np.random.default_rng(0).permutation(len(cut))
    return to_float(torch.from_numpy(cut[order])), "H&E"


def _squares(image: NDArray[np.uint8], at_most: int = 40) -> NDArray[np.uint8]:
    """Patches side by side, shape (n, h, w, 3)."""
    corners = [
        (y, x)
        for y in range(0, image.shape[0] - PATCH_PX + 1, PATCH_PX)
        for x in range(0, image.shape[1] - PATCH_PX + 1, PATCH_PX)
    ]
    return np.stack([image[y : y + PATCH_PX, x : x + PATCH_PX] for y, x in corners[:at_most]])


def encoder_of(name: str, norm: str, weights: Path | None, patches: Tensor) -> Encoder:
    """An encoder in evaluation mode whose activations have the range of a trained one."""
    torch.manual_seed(0)
    spec = encoder_spec(name, norm=norm, has_weights=norm == "batch" or weights is not None)
    encoder = build_encoder(spec, weights=weights)
    norms = [part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)]
    if weights is None and norms:
        for part in norms:
            part.reset_running_stats()
            part.momentum = None
            part.train()
        with torch.no_grad():
            encoder.embed_raw(patches)
    encoder.eval()
    encoder.start(patches)
    return encoder


def usual_layout(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """The peer: eager, patches and weights in PyTorch's default layout."""
    plain = copy.deepcopy(encoder).to(memory_format=torch.contiguous_format).eval()
    return lambda patches: plain(patches.contiguous())


def rates(ways: dict[str, Callable[[Tensor], Tensor]], patches: Tensor, rounds: int) -> dict[str, float]:
    """Patches per second of each way, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way(patches)
            if round_:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    return {name: len(patches) / statistics.median(times) for name, times in seconds.items()}


@torch.inference_mode()
def measured(name: str, norm: str, weights: Path | None, patches: Tensor, what: str, rounds: int) -> list[Row]:
    """Rows of one encoder."""
    encoder = encoder_of(name, norm, weights, patches[:CALIBRATED])
    ways = {
        "eager": usual_layout(encoder),
        "channels last": encoder,
        "fused scan": scan_encoder(encoder),
    }
    about = []
    try:
        with torch.inference_mode(mode=False):
            ways["int8"] = Int8Exporter(encoder, PATCH_PX).calibrated(patches[:CALIBRATED])
        net = IpsNet(encoder).eval()
        check = compare(net, ways["int8"], patches[CALIBRATED:], memory_size=64)
        about = [
            ("relative error of int8", check.error, 0.0, "float32", "of the norm"),
            ("correlation of int8 scores", check.correlation, 1.0, "float32", "Spearman"),
            (f"same among best {check.kept} of {check.tiles}", check.overlap, 1.0, "float32", "share"),
        ]
    except RecipeError as error:
        print(f"int8 left out: {error}")
    found = rates(ways, patches[:PATCHES_PER_CALL], rounds)
    title = f"{name} {norm} norm, {PATCH_PX} px {what}"
    rows = [
        row(f"{title}: {way}", found[way], found["eager"], "eager float32", "patches/s")
        for way in ways
        if way != "eager"
    ]
    return rows + [row(f"{title}: {case}", *rest) for case, *rest in about]


def row(case: str, ours: float, peer: float, peer_name: str, unit: str) -> Row:
    """One row; the ratio is left at 0 where the peer's figure is 0."""
    ratio = round(ours / peer, 3) if peer else 0.0
    return {
        "case": case,
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "peer_name": peer_name,
        "ratio": ratio,
        "unit": unit,
    }


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ResNet-18 only, 3 rounds")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--textures", type=Path, default=TEXTURES, help="images to cut patches from; noise without")
    parser.add_argument("--encoder", help="this encoder only, e.g. timm:vit_small_patch16_224")
    parser.add_argument("--weights", type=Path, help="its weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    patches, what = patches_of(options.textures)
    cases = [
        ("resnet18", "batch"),
        ("resnet18", "group"),
        ("resnet50-3", "batch"),
        ("timm:vit_small_patch16_224", "auto"),
    ]
    if options.encoder:
        cases = [(options.encoder, "auto" if options.encoder.startswith("timm:") else "batch")]
    elif options.quick:
        cases = cases[:1]
    rows = []
    for name, norm in cases:
        for found in measured(name, norm, options.weights, patches, what, 3 if options.quick else 7):
            rows.append(found)
            print(
                "{case:75} ours {ours:9.4g}  {peer_name} {peer:8.4g}  ratio {ratio:.3f}  {unit}".format(**found),
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
