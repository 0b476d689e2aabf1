"""The encoder of a recipe as it comes, before anything is learned: what it is, and what it makes of tiles."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from wsi_ips.config import ModelSection, Recipe
from wsi_ips.errors import CheckpointError
from wsi_ips.model import EncoderSpec, build_encoder, encoder_spec, read_card
from wsi_ips.model.card import EncoderOrigin
from wsi_ips.model.checkpoint import load_trunk
from wsi_ips.model.encoder import Encoder
from wsi_ips.pipeline.cohort import names_of
from wsi_ips.pipeline.learning.feature_source import IMPORTED_KEY, FeatureSource
from wsi_ips.pipeline.run import Run
from wsi_ips.provenance import fingerprint
from wsi_ips.tiles.interop import find_features


@dataclass(frozen=True)
class EncoderPlan:
    """How the encoder of a recipe is built.

    Attributes
    ----------
    spec
        Architecture, normalisation, projector.
    pretrained, weights
        As for :func:`wsi_ips.model.build_encoder`.
    origin
        Where its weights come from.
    start
        Checkpoint whose encoder is taken, None where there is none or it has none.
    """

    spec: EncoderSpec
    pretrained: bool
    weights: Path | None
    origin: EncoderOrigin | None
    start: Path | None = None


def plan_encoder(section: ModelSection) -> EncoderPlan:
    """How to build a recipe's encoder: that of `model.start`, else the named one.

    Raises
    ------
    CheckpointError
        `model.start` has another encoder or cannot be read.
    RecipeError
        There is no such encoder.
    """
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
    has_weights = section.pretrained or section.weights is not None
    spec = encoder_spec(section.encoder, norm=section.norm, has_weights=has_weights)
    return EncoderPlan(replace(spec, projector=projector), section.pretrained, section.weights, _origin(section))


def _origin(section: ModelSection) -> EncoderOrigin:
    if section.weights is not None:
        return EncoderOrigin("file", section.weights.name)
    return EncoderOrigin("published" if section.pretrained else "random")


def frozen_encoder(recipe: Recipe) -> Encoder:
    """The encoder whose features are stored, in evaluation mode: nothing after its trunk changes them.

    One without weights is drawn from the recipe's seed, the same as for a training on pixels.

    Raises
    ------
    CheckpointError, RecipeError
        It cannot be built.
    """
    plan = plan_encoder(recipe.model)
    torch.manual_seed(recipe.seed)
    encoder = build_encoder(replace(plan.spec, projector=0), pretrained=plan.pretrained, weights=plan.weights)
    if plan.start is not None:
        load_trunk(encoder.trunk, plan.start)
    encoder.check_patch(recipe.tiles.patch_px)
    return encoder.eval()


def encoder_fingerprint(encoder: Encoder) -> str:
    """Fingerprint of all that turns a patch into a feature: the very weights of the trunk, and how it is fed."""
    spec = {key: value for key, value in asdict(encoder.spec).items() if key not in ("projector", "features")}
    fed = [encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()]
    return fingerprint("encoder", spec, fed, _hash(encoder.trunk))


def encoder_key(encoder: Encoder) -> str:
    """Name of the folder of an encoder's features: its name, and what tells it from others of that name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", encoder.spec.name).strip("-.")
    return f"{name}-{encoder_fingerprint(encoder)[:8]}"


def feature_source(run: Run, encoder: Encoder | None = None) -> FeatureSource:
    """Where the features of a run are: those of another tool, else of an encoder; None is the recipe's as it comes."""
    folder = run.recipe.features.imported
    if folder is not None:
        return FeatureSource(run, IMPORTED_KEY, "", find_features(folder, names_of(run.records)))
    encoder = encoder or frozen_encoder(run.recipe)
    return FeatureSource(run, encoder_key(encoder), encoder_fingerprint(encoder))


def _hash(trunk: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(trunk.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
