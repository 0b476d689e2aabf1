"""Cost of augmentation per patch, against the encoder's forward pass and torchvision's transforms, on one thread.

The peer is torchvision v2 as it has to be called for numbers of each patch's own: one call per patch, eager. It has no
stain jitter, so those rows have no peer. All ways get the same patches in turn, round after round; the median of CPU
time counts, in microseconds a patch.

    python benchmarks/augment.py [--quick] [--json FILE] [--patch-px 224] [--encoder NAME]

Prints a table; with --json also writes rows {case, ours, peer, peer_name, ratio, unit}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from wsi_ips.config import AugmentSection
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.scan_encoders import auto
from wsi_ips.training.augment import augment, tile_keys

COLOUR = {"brightness": 0.2, "saturation": 0.2}


def only(**strengths: float) -> AugmentSection:
    """These strengths and nothing else."""
    return AugmentSection.nothing().model_copy(update=strengths)


CASES: dict[str, tuple[AugmentSection, Callable[[Tensor], Tensor] | None]] = {
    "turns": (
        only(turns=True),
        v2.Compose(
            [v2.RandomHorizontalFlip(), v2.RandomChoice([v2.RandomRotation((a, a)) for a in (0, 90, 180, 270)])]
        ),
    ),
    "default": (AugmentSection(), None),
    "HED": (only(hed=0.2), None),
    "colour": (only(**COLOUR), v2.ColorJitter(**COLOUR)),
}


def microseconds(ways: dict[str, Callable[[], object]], *, patches: int, rounds: int) -> dict[str, float]:
    """Median CPU time a patch of each way; one round before counts for nothing."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if turn:
                times[name].append((time.process_time() - began) / patches * 1e6)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few patches, few rounds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--patch-px", type=int, default=224)
    parser.add_argument("--encoder", default="resnet18")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, rounds = (8, 2) if options.quick else (32, 9)
    side = options.patch_px
    torch.manual_seed(0)
    patches = torch.rand(count, 3, side, side).mul_(0.6).add_(0.3).contiguous(memory_format=torch.channels_last)
    keys = tile_keys(seed=0, epoch=1, slide_id="s", tiles=np.arange(count))
    encoder = build_encoder(encoder_spec(options.encoder, norm="group", has_weights=False)).eval()
    encode = auto(encoder)

    ways: dict[str, Callable[[], object]] = {"encoder": lambda: encode(patches)}
    for name, (strengths, peer) in CASES.items():
        ways[name] = lambda strengths=strengths: augment(patches, keys, strengths)  # type: ignore[misc]
        if peer is not None:
            ways[f"{name}, peer"] = lambda peer=peer: torch.stack([peer(patch) for patch in patches])  # type: ignore[misc]
    with torch.inference_mode():
        found = microseconds(ways, patches=count, rounds=rounds)

    print(f"{count} patches of {side} px, one thread; {options.encoder}: {found['encoder']:.0f} us a patch")
    print("| case | ours, us a patch | of the encoder's forward | torchvision, patch by patch |")
    print("|---|---|---|---|")
    rows = []
    for name in CASES:
        ours, peer_time = found[name], found.get(f"{name}, peer")
        told = "" if peer_time is None else f"{peer_time:.0f}"
        print(f"| {name} | {ours:.0f} | {ours / found['encoder']:.1%} | {told} |")
        against, who = (found["encoder"], "encoder") if peer_time is None else (peer_time, "torchvision v2")
        rows.append(
            {"case": name, "ours": ours, "peer": against, "peer_name": who, "ratio": ours / against, "unit": "us/patch"}
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
