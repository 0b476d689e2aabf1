"""Bundles that were never trained, with what a bundle pins, and small real slides to predict with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.faults.slides import RECIPE
from wsi_ips.config import Recipe
from wsi_ips.inference.preparation import preparation_of
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint import build_net, save_checkpoint
from wsi_ips.model.checkpoint_card import ModelCard
from wsi_ips.model.encoder_families import encoder_spec

TASKS = (Task("label", ("normal", "tumor")),)


def write_bundle(folder: Path, *, seed: int = 0, tasks: tuple[Task, ...] = TASKS, **changes: Any) -> Path:
    """A bundle for the slides of `tests.faults.slides`: patches of 64 px at 0.5 µm/px."""
    torch.manual_seed(seed)
    recipe = Recipe.model_validate(RECIPE | {"compute": {}})
    values = {
        "model_id": f"untrained-{seed:08x}",
        "tasks": tasks,
        "encoder": encoder_spec("resnet18-1", norm="auto", has_weights=False),
        "heads": 2,
        "key_width": 8,
        "dropout": 0.1,
        "memory_size": 4,
        "patch_mpp": 0.5,
        "patch_px": 64,
        "fingerprint": f"{seed:016x}",
        "metrics": {},
        "preparation": preparation_of(recipe),
    }
    card = ModelCard(**values | changes)
    net = build_net(card)
    with torch.no_grad():
        net.head.weight.mul_(60)  # an untrained head says 0.5 of everything
    save_checkpoint(folder, net, card)
    return folder
