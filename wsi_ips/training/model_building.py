"""Building the network of a recipe: its encoder with its initial weights, its model card, and which parts learn."""

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
from wsi_ips.model.checkpoint import build_net, load_trunk, start_from_checkpoint
from wsi_ips.model.checkpoint_card import EncoderOrigin, EncoderSpec, ModelCard, read_card
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.encoder_file import spec_for_file
from wsi_ips.model.freezing import add_lora, freeze
from wsi_ips.model.net import IpsNet
from wsi_ips.provenance import fingerprint
from wsi_ips.training.processes import Processes


@dataclass(frozen=True)
class EncoderPlan:
    """Plan for building the encoder of a recipe."""

    spec: EncoderSpec
    pretrained: bool
    weights: Path | None
    origin: EncoderOrigin | None = None  # where the weights come from; None where nobody recorded it
    start: Path | None = None  # checkpoint whose encoder is taken; None where there is none or it has no encoder

    @property
    def has_weights(self) -> bool:
        """Whether the encoder begins with weights that were trained before."""
        return self.pretrained or self.weights is not None or self.start is not None

    def with_features_of(self, name: str, width: int) -> EncoderPlan:
        """Return the plan for features of this width that another tool's encoder made."""
        projector = self.spec.projector
        spec = EncoderSpec(name, "batch", frozen_statistics=True, projector=projector, features=width)
        return replace(self, spec=spec, origin=EncoderOrigin("imported"))


def plan_encoder(section: ModelSection) -> EncoderPlan:
    """Return how to build a recipe's encoder: that of `model.start`, else the named one."""
    projector = section.projector or 0
    if section.start is not None:
        card = read_card(section.start)
        stored = card.encoder
        if not stored.features:
            if stored.name != section.encoder:
                raise CheckpointError(
                    f"key `model.start`: {section.start} has encoder {stored.name}, the recipe {section.encoder}; set "
                    "`model.encoder` to that of the checkpoint"
                )
            origin = card.origin and replace(card.origin, through=(*card.origin.through, card.model_id))
            return EncoderPlan(replace(stored, projector=projector), False, None, origin, section.start)
    spec = encoder_spec(
        section.encoder, norm=section.norm, has_weights=section.pretrained or section.weights is not None
    )
    origin = EncoderOrigin("published" if section.pretrained else "random")
    if section.weights is not None:
        spec, origin = spec_for_file(spec, section.weights), EncoderOrigin("file", section.weights.name)
    return EncoderPlan(replace(spec, projector=projector), section.pretrained, section.weights, origin)


def frozen_encoder(section: ModelSection, *, seed: int, patch_px: int) -> Encoder:
    """Return the encoder whose features are stored, in evaluation mode, without projector.

    One without weights is drawn from the recipe's seed, the same as for a training on pixels.
    """
    plan = plan_encoder(section)
    torch.manual_seed(seed)
    encoder = build_encoder(replace(plan.spec, projector=0), pretrained=plan.pretrained, weights=plan.weights)
    if plan.start is not None:
        load_trunk(encoder.trunk, plan.start)
    encoder.check_patch(patch_px)
    return encoder.eval()


def encoder_fingerprint(encoder: Encoder) -> str:
    """Return a fingerprint of everything that turns a patch into a feature: trunk weights and input scaling."""
    spec = {key: value for key, value in asdict(encoder.spec).items() if key not in ("projector", "features")}
    scaling = [encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()]
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.trunk.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return fingerprint("encoder", spec, scaling, digest.hexdigest())


def encoder_key(encoder: Encoder) -> str:
    """Return the folder name of an encoder's features: its name, and what distinguishes it from others of that name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", encoder.spec.name).strip("-.")
    return f"{name}-{encoder_fingerprint(encoder)[:8]}"


def new_card(section: ModelSection, tiles: TilesSection, tasks: Sequence[Task], plan: EncoderPlan) -> ModelCard:
    """Return the card of a model that is not trained yet, without identity and training facts."""
    return ModelCard(
        model_id="",
        tasks=tuple(tasks),
        encoder=plan.spec,
        heads=section.heads,
        key_width=section.key_width,
        dropout=section.dropout,
        memory_size=section.memory_size,
        patch_mpp=tiles.mpp,
        patch_px=tiles.patch_px,
        fingerprint="",
        pooling=section.pooling,
        position=section.position,
        origin=plan.origin,
        input=section.input,
        freeze="lora" if section.lora_rank else section.freeze,
    )


def build_network(
    section: ModelSection, card: ModelCard, plan: EncoderPlan, *, processes: Processes, on_features: bool
) -> tuple[IpsNet, nn.Module | None]:
    """Build the network of a card on the device of a process, with its initial weights and its frozen parts.

    The second result is the trunk that is taken off to learn from its stored features (``on_features``), else None.
    """
    build = partial(build_net, card, pretrained=plan.pretrained, weights=plan.weights)
    with processes.ahead() as is_first:
        built = build() if is_first else None
    net = built or build()
    if section.start is not None:
        start_from_checkpoint(net, section.start)
    net.encoder.check_patch(card.patch_px)
    trunk = net.encoder.take_trunk() if on_features and not plan.spec.features else None
    freeze(net.encoder, section.freeze)
    if section.lora_rank:
        add_lora(net.encoder, section.lora_rank)
    return net.to(processes.device), trunk
