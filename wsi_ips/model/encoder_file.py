"""Weights of an encoder that wsi-ips trained without labels, as one file for ``model.weights``.

A .safetensors file with the trunk's tensors. Its header names the encoder and its norm: an encoder trained from scratch
has group norm, which weights alone do not tell apart from frozen batch norm until they fail to load.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from wsi_ips.errors import CheckpointError
from wsi_ips.model.checkpoint_card import EncoderSpec
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.freezing import plain_state
from wsi_ips.provenance import atomic_path

ENCODER, NORM, FINGERPRINT = "wsi_ips.encoder", "wsi_ips.norm", "wsi_ips.fingerprint"  # keys of the header


def write_encoder(path: Path, encoder: Encoder, *, fingerprint: str) -> None:
    """Write the trunk of an encoder; low-rank matrices (LoRA) are merged into its weights."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in plain_state(encoder.trunk).items()}
    header = {ENCODER: encoder.spec.name, NORM: encoder.spec.norm, FINGERPRINT: fingerprint}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, header)


def encoder_header(path: Path) -> dict[str, str]:
    """Return the header of a weights file; empty where it has none, or cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def spec_for_file(spec: EncoderSpec, path: Path) -> EncoderSpec:
    """Return the specification of an encoder that loads a weights file: its norm is that of :func:`write_encoder`."""
    header = encoder_header(path)
    if ENCODER not in header:
        return spec
    if header[ENCODER] != spec.name:
        raise CheckpointError(
            f"encoder weights {path}: those of {header[ENCODER]}, and the recipe has {spec.name}; set `model.encoder: "
            f"{header[ENCODER]}`"
        )
    if header[NORM] == "group":
        return replace(spec, norm="group", frozen_statistics=False)
    return spec
