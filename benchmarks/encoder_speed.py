"""Speed of the encoder in the scan on one thread: our scan backends against PyTorch's and ``torch.compile``.

CPU time of the process counts, so that other work on the machine does not.

Ways: eager in PyTorch's usual memory layout; eager channels last, all patches at once and in parts that fit the cache
(backend `eager`); backend `auto`, fused where the norm is batch norm; ``torch.compile`` (inductor, `dynamic=False`),
plain and with freezing, in the same parts; int8. All get the same patches in turn, round after round; ratios of the
medians count. Weights are untrained, with the batch statistics of other patches, unless --weights names a file. Int8
is calibrated on 64 patches; its error, the correlation of its scores and the overlap of the best quarter are taken on
others. Without the extra `int8` its rows are left out.

    python benchmarks/encoder_speed.py [--quick] [--encoder NAME] [--norm NAME] [--side PX] [--exact] [--json FILE]

Prints a table; with --json also writes rows {case, ours, peer, peer_name, ratio, unit}, `ours` being backend `auto`.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from wsi_ips.config import ComputeSection
from wsi_ips.errors import RecipeError
from wsi_ips.inference.slide_prediction import compare_scores
from wsi_ips.model.encoder import Encode, Encoder
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.scan_backends import SCAN_BACKENDS
from wsi_ips.model.scan_encoders import in_parts
from wsi_ips.scanning import fast_encoder

TEXTURES = Path(os.environ["WSI_IPS_DATA"]) / "textures" if "WSI_IPS_DATA" in os.environ else None
SIDES_PX, PIXELS_PER_CALL, CALIBRATED, CHECKED = (64, 256), 2**20, 64, 96
Row = dict[str, Any]


def patches_of(folder: Path | None, side: int) -> tuple[Tensor, str]:
    """Patches in shuffled order, (n, 3, h, w), and what they are."""
    count = max(CALIBRATED + CHECKED, PIXELS_PER_CALL // side**2)
    found = folder.glob("*/*") if folder else ()
    files = sorted(p for p in found if p.parent.name in ("normal", "tumor", "lymphoid"))
    rng = np.random.default_rng(0)
    if not files:
        noise = rng.uniform(60, 220, (count, 1, 1, 3)) + rng.normal(0, 30, (count, side, side, 3))
        return to_float(torch.from_numpy(noise.clip(0, 255).astype(np.uint8))), "noise"
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    cut = np.empty((count, side, side, 3), np.uint8)
    for patch in cut:
        image = images[rng.integers(len(images))]
        y, x = (rng.integers(extent - side + 1) for extent in image.shape[:2])
        patch[:] = image[y : y + side, x : x + side]
    return to_float(torch.from_numpy(cut)), "H&E"


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


def ways_of(encoder: Encoder) -> dict[str, Encode]:
    """All exact ways to run an encoder; the copies are compiled on their own."""
    usual = copy.deepcopy(encoder).to(memory_format=torch.contiguous_format).eval()
    plain, frozen = (
        torch.compile(copy.deepcopy(encoder).eval(), dynamic=False, options={"freezing": freezing})
        for freezing in (False, True)
    )
    return {
        "auto": fast_encoder(encoder, ComputeSection(device="cpu")),
        "eager": lambda patches: usual(patches.contiguous()),
        "channels last": encoder,
        "channels last, in parts": fast_encoder(encoder, ComputeSection(device="cpu", scan_backend="eager")),
        "torch.compile": partial(in_parts, plain),
        "torch.compile, freezing": partial(in_parts, frozen),
    }


@torch.no_grad()
def rates(ways: dict[str, Encode], patches: Tensor, rounds: int) -> dict[str, float]:
    """Patches per second of each way, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            way(patches)
            if round_:  # the first warms up
                seconds[name].append(time.process_time() - began)
    return {name: len(patches) / statistics.median(times) for name, times in seconds.items()}


def measured(name: str, norm: str, weights: Path | None, side: int, options: argparse.Namespace) -> list[Row]:
    """Rows of one encoder and one size of patches."""
    patches, what = patches_of(options.textures, side)
    encoder = encoder_of(name, norm, weights, patches[:CALIBRATED])
    ways, about = ways_of(encoder), []
    try:
        if options.exact:
            raise RecipeError("exact ways only")
        backend = SCAN_BACKENDS["int8"]
        backend.check(encoder, side)
        ways["int8"] = backend.load()(encoder, patches[:CALIBRATED])
        net = IpsNet(encoder).eval()
        check = compare_scores(net, ways["int8"], patches[CALIBRATED : CALIBRATED + CHECKED], memory_size=64)
        about = [
            ("relative error of int8", check.error, 0.0, "float32", "of the norm"),
            ("correlation of int8 scores", check.correlation, 1.0, "float32", "Spearman"),
            (f"same among best {check.kept} of {check.tiles}", check.overlap, 1.0, "float32", "share"),
        ]
    except RecipeError as error:
        print(f"int8 left out: {error}")
    found = rates(ways, patches[: PIXELS_PER_CALL // side**2], 3 if options.quick else 7)
    title = f"{name} {norm} norm, {side} px {what}"
    rows = [row(f"{title}: {way}", found["auto"], found[way], way, "patches/s") for way in ways if way != "auto"]
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
    parser.add_argument("--quick", action="store_true", help="3 rounds; ResNet-18, batch norm, 64 px unless given")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--textures", type=Path, default=TEXTURES, help="images to cut patches from; noise without")
    parser.add_argument("--encoder", help="this encoder only, e.g. timm:vit_small_patch16_224")
    parser.add_argument("--weights", type=Path, help="its weights")
    parser.add_argument("--norm", choices=("batch", "group"), help="this norm only")
    parser.add_argument("--side", type=int, choices=SIDES_PX, help="patches of this side only, px")
    parser.add_argument("--exact", action="store_true", help="leave int8 out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    few = slice(1 if options.quick else None)
    names = [options.encoder] if options.encoder else ["resnet18", "resnet50"][few]
    norms = [options.norm] if options.norm else ["batch", "group"][few]
    if options.encoder and options.encoder.startswith("timm:"):
        norms = ["auto"]
    rows = []
    for name, norm, side in itertools.product(names, norms, [options.side] if options.side else SIDES_PX[few]):
        for found in measured(name, norm, options.weights, side, options):
            rows.append(found)
            print(
                "{case:75} ours {ours:9.4g}  {peer_name} {peer:8.4g}  ratio {ratio:.3f}  {unit}".format(**found),
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
