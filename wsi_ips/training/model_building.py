"""Building the network of a recipe: its encoder with its first weights, its model card, and which parts learn."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from wsi_ips.config import ModelSection, TilesSection
from wsi_ips.errors import CheckpointError
from wsi_ips.labels import Task
from wsi_ips.model import EncoderSpec, IpsNet, ModelCard, build_encoder, encoder_spec, read_card
from wsi_ips.model.checkpoint import build_net
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.freezing import add_lora, freeze
from wsi_ips.model.start import take_over, take_trunk
from wsi_ips.provenance import fingerprint
from wsi_ips.training.processes import Processes


@dataclass(frozen=True)
class EncoderPlan:
    """How the encoder of a recipe is built."""

    spec: EncoderSpec
    pretrained: bool
    weights: Path | None
    start: Path | None = None  # checkpoint whose encoder is taken; None where there is none or it has no encoder

    def with_features_of(self, name: str, width: int) -> EncoderPlan:
        """Return the plan for features of this width that another tool's encoder made."""
        projector = self.spec.projector
        spec = EncoderSpec(name, "batch", frozen_statistics=True, projector=projector, features=width)
        return replace(self, spec=spec)


def plan_encoder(section: ModelSection) -> EncoderPlan:
    """Return how to build a recipe's encoder: that of `model.start`, else the named one.

    Raises
    ------
    CheckpointError
        `model.start` has another encoder or cannot be read.
    RecipeError
        There is no such encoder.
    """
    projector = section.projector or 0
    if section.start is not None:
        stored = read_card(section.start).encoder
        if not stored.features:
            if stored.name != section.encoder:
                raise CheckpointError(
                    f"key `model.start`: {section.start} has encoder {stored.name}, the recipe {section.encoder}; set "
                    "`model.encoder` to that of the checkpoint"
                )
            return EncoderPlan(replace(stored, projector=projector), False, None, section.start)
    has_weights = section.pretrained or section.weights is not None
    spec = encoder_spec(section.encoder, norm=section.norm, has_weights=has_weights)
    return EncoderPlan(replace(spec, projector=projector), section.pretrained, section.weights)


def frozen_encoder(section: ModelSection, *, seed: int, patch_px: int) -> Encoder:
    """Return the encoder whose features are stored, in evaluation mode, without projector.

    One without weights is drawn from the recipe's seed, the same as for a training on pixels.

    Raises
    ------
    CheckpointError, RecipeError
        It cannot be built.
    """
    plan = plan_encoder(section)
    torch.manual_seed(seed)
    encoder = build_encoder(replace(plan.spec, projector=0), pretrained=plan.pretrained, weights=plan.weights)
    if plan.start is not None:
        take_trunk(encoder.trunk, plan.start)
    encoder.check_patch(patch_px)
    return encoder.eval()


def encoder_fingerprint(encoder: Encoder) -> str:
    """Return a fingerprint of all that turns a patch into a feature: the weights of the trunk and its input scaling."""
    spec = {key: value for key, value in asdict(encoder.spec).items() if key not in ("projector", "features")}
    scaling = [encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()]
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.trunk.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return fingerprint("encoder", spec, scaling, digest.hexdigest())


def encoder_key(encoder: Encoder) -> str:
    """Return the folder name of an encoder's features: its name, and what tells it from others of that name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", encoder.spec.name).strip("-.")
    return f"{name}-{encoder_fingerprint(encoder)[:8]}"


def new_card(section: ModelSection, tiles: TilesSection, tasks: Sequence[Task], spec: EncoderSpec) -> ModelCard:
    """Return the card of a model that is not trained yet, without identity and training facts."""
    return ModelCard(
        model_id="",
        tasks=tuple(tasks),
        encoder=spec,
        heads=section.heads,
        key_width=section.key_width,
        dropout=section.dropout,
        memory_size=section.memory_size,
        patch_mpp=tiles.mpp,
        patch_px=tiles.patch_px,
        fingerprint="",
        metrics={},
        pooling=section.pooling,
        selection=section.selection,
        iteration_size=section.iteration_size,
        position=section.position,
        evidence=section.evidence,
    )


def build_network(
    section: ModelSection, card: ModelCard, plan: EncoderPlan, *, processes: Processes, on_features: bool
) -> tuple[IpsNet, nn.Module | None]:
    """Build the network of a card on the device of a process, with its first weights and its frozen parts.

    Parameters
    ----------
    section, card, plan
        What to build.
    processes
        The first process fetches published weights before the others do.
    on_features
        Stored features of this encoder are learned from: its trunk is taken off.

    Returns
    -------
    tuple
        The network, and the trunk that was taken off; None where there is none.
    """
    build = partial(build_net, card, pretrained=plan.pretrained, weights=plan.weights)
    with processes.ahead() as is_first:
        built = build() if is_first else None
    net = built or build()
    if section.start is not None:
        take_over(net, section.start)
    net.encoder.check_patch(card.patch_px)
    trunk = net.encoder.take_trunk() if on_features and not plan.spec.features else None
    freeze(net.encoder, section.freeze)
    if section.lora_rank:
        add_lora(net.encoder, section.lora_rank)
    return net.to(processes.device), trunk
