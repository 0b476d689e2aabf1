"""What a checkpoint says of itself; read without torch, for those who only show results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from wsi_ips.errors import CheckpointError
from wsi_ips.labels import Task
from wsi_ips.model.rules import SelectionName
from wsi_ips.provenance import atomic_write_json, fingerprint

PoolingName = Literal["attention", "abmil", "mean", "max"]
PositionName = Literal["none", "sinusoidal"]
SCHEMA_VERSION = 3
READABLE = (2, SCHEMA_VERSION)
"""A card of schema 2 says nothing of the preparation and of the training slides."""
WEIGHTS_SCHEMA = 2
"""Of what the weights mean; scores stay valid while it does."""
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "model.json"


@dataclass(frozen=True)
class EncoderSpec:
    """Everything needed to build an encoder again, without its weights.

    Attributes
    ----------
    name
        ``resnet18``, ``resnet18-2`` (first two of its four stages), ..., ``timm:NAME`` or ``preset:KEY``.
    norm
        ``group`` has group norm wherever the architecture has batch norm; ``batch`` leaves it as it is.
    frozen_statistics
        Batch norm uses its stored statistics also in training, so that the scan and the gradient pass
        see one and the same network.
    architecture, arguments, mean, std
        What a model's page on the hub says of it, so that a trained one is built again without the network; empty
        until :func:`build_encoder` has read it, and for all other models.
    projector
        Width that a learned projector brings the output to; 0: there is none.
    features
        Width of the features of another tool that it takes instead of patches; 0: it takes patches.
    """

    name: str
    norm: Literal["batch", "group"]
    frozen_statistics: bool
    architecture: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    projector: int = 0
    features: int = 0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # lists where they come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint must say of itself to be used on other slides.

    Attributes
    ----------
    model_id
        Short name shown on every picture.
    tasks
        What it was taught, in the order of the head's outputs; the first one is the slide label of heatmaps.
    encoder
        Encoder architecture and normalisation.
    heads, key_width, dropout
        Of the pooling block.
    memory_size
        Tiles kept per slide (M).
    patch_mpp, patch_px
        Scale and side of the patches it was trained on.
    fingerprint
        Of the training that made it.
    metrics
        Figures of its epoch.
    pooling
        Name of the pooling.
    selection, iteration_size
        How tiles are selected; the latter matters to `paper` only.
    position
        Whether the place of a tile is added to its embedding.
    preparation
        Sections `slides`, `tissue` and `tiles` of the recipe it was trained with, as far as they change what pixels it
        sees, as plain JSON; None where the card is too old to say so.
    training
        Facts of the slides and the training, for people; as plain JSON, see
        :mod:`wsi_ips.pipeline.learning.training_facts`.
    evidence
        Whether the slide's logits are a sum over its kept tiles.
    """

    model_id: str
    tasks: tuple[Task, ...]
    encoder: EncoderSpec
    heads: int
    key_width: int
    dropout: float
    memory_size: int
    patch_mpp: float
    patch_px: int
    fingerprint: str
    metrics: dict[str, float]
    pooling: PoolingName = "attention"
    selection: SelectionName = "exact"
    iteration_size: int = 256
    position: PositionName = "none"
    preparation: Mapping[str, Any] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    evidence: bool = False


def read_card(folder: Path) -> ModelCard:
    """Read a checkpoint's card.

    Raises
    ------
    CheckpointError
        Missing, damaged or of another schema.
    """
    path = folder / CARD_NAME
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {folder}: there is none; run `wsi-ips train` first") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read ({error}); train again") from error
    if stored.pop("schema_version", None) not in READABLE:
        raise CheckpointError(f"checkpoint {path}: written by another version of wsi-ips; train again")
    try:
        encoder = EncoderSpec(**stored.pop("encoder"))
        tasks = tuple(Task(**{**task, "classes": tuple(task["classes"])}) for task in stored.pop("tasks"))
        card = ModelCard(encoder=encoder, tasks=tasks, **stored)
        _known("pooling", card.pooling, get_args(PoolingName))
        _known("position", card.position, get_args(PositionName))
        _known("selection", card.selection, get_args(SelectionName))
        return card
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: damaged ({error}); train again") from error


def write_card(folder: Path, card: ModelCard) -> None:
    """Write a checkpoint's card; whoever reads it sees the old one or the new one."""
    atomic_write_json(folder / CARD_NAME, {"schema_version": SCHEMA_VERSION, **asdict(card)})


def _known(key: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise ValueError(f"unknown {key} `{name}`")


def checkpoint_fingerprint(folder: Path) -> str:
    """Fingerprint of a checkpoint as an input of tile scores: its training and its very weights.

    Not its calibration: that changes what is said of a slide, and no stored score.

    Raises
    ------
    CheckpointError
        There is none.
    """
    card = read_card(folder)
    try:
        weights = hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder}: no weights ({error}); train again") from error
    return fingerprint("checkpoint", WEIGHTS_SCHEMA, card.fingerprint, weights)
