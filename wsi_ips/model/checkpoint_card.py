"""The card of a checkpoint: everything but its weights. Reading it needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from wsi_ips.errors import CheckpointError
from wsi_ips.labels import Task
from wsi_ips.model.poolings import POOLINGS
from wsi_ips.provenance import atomic_write_json, fingerprint

PositionName = Literal["none", "sinusoidal"]
InputName = Literal["pixels", "features"]
WeightsSource = Literal["random", "published", "file", "imported"]

SCHEMA_VERSION = 4
WEIGHTS_SCHEMA = 2
"""Version of the meaning of the weights; stored scores stay valid as long as it does not change."""
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "model.json"


@dataclass(frozen=True)
class EncoderSpec:
    """Everything needed to build an encoder again, without its weights.

    Attributes
    ----------
    name
        Name as in ``model.encoder``, or ``imported:NAME`` for an encoder that another tool ran.
    norm
        ``group`` replaces all batch norm of the architecture by group norm; ``batch`` leaves it.
    frozen_statistics
        Batch norm uses its stored statistics also in training, so that the scan and the gradient pass use the same
        network.
    architecture, arguments, mean, std
        Configuration from the model's page on the hub, so that a trained model can be built again without the
        network. Empty for other models, and until :func:`build_encoder` has read it.
    projector
        Width of the learned projector behind the trunk; 0: none.
    features
        Width of the stored features of another tool that it takes instead of patches; 0: it takes patches.
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
        for name in ("mean", "std"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True)
class EncoderOrigin:
    """Where the encoder's weights come from; their licence depends on it.

    Attributes
    ----------
    source
        ``random``: no weights were given; ``published``: the weights published under the encoder's name; ``file``: a
        local file; ``imported``: another tool ran the encoder and only its features are known.
    file
        Name of that file.
    through
        Model ids of the checkpoints that a training started from (``model.start``), the first one first.
    """

    source: WeightsSource
    file: str = ""
    through: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "through", tuple(self.through))


@dataclass(frozen=True, kw_only=True)
class NetSettings:
    """Settings of the network behind its encoder.

    Attributes
    ----------
    tasks
        Each has one query of the pooling and one linear head; the first is the slide label of heatmaps.
    pooling
        Name in :data:`wsi_ips.model.poolings.POOLINGS`.
    heads, key_width, dropout
        Size of the pooling block.
    position
        ``sinusoidal`` adds the place of a tile to its embedding.
    """

    tasks: tuple[Task, ...] = (Task("label", ("normal", "tumor")),)
    pooling: str = "attention"
    heads: int = 8
    key_width: int = 64
    dropout: float = 0.1
    position: PositionName = "none"


@dataclass(frozen=True, kw_only=True)
class ModelCard(NetSettings):
    """Description of a checkpoint, enough to use it on other slides.

    Attributes
    ----------
    model_id
        Short name shown on every picture.
    encoder
        Encoder architecture and normalisation.
    memory_size
        Tiles kept per slide (M).
    patch_mpp, patch_px
        Scale and side of the patches it was trained on.
    fingerprint
        Fingerprint of its training.
    metrics
        Figures of its epoch.
    preparation
        Sections ``slides``, ``tissue`` and ``tiles`` of the recipe it was trained with, as far as they decide which
        pixels the network sees, as plain JSON; None pins nothing.
    training
        Facts about the slides and the training, for people, as plain JSON; see
        :func:`wsi_ips.pipeline.train_stage.training_facts`.
    origin
        Where the encoder's weights come from; None where nobody recorded it.
    input
        ``pixels``, or ``features`` of an encoder that did not learn.
    freeze
        Part of the encoder that did not learn, as in ``model.freeze``; ``lora`` where only added matrices learned.
    """

    model_id: str
    encoder: EncoderSpec
    memory_size: int
    patch_mpp: float
    patch_px: int
    fingerprint: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    preparation: Mapping[str, Any] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    origin: EncoderOrigin | None = None
    input: InputName = "pixels"
    freeze: str | int = "none"


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
    if stored.pop("schema_version", None) != SCHEMA_VERSION:
        raise CheckpointError(f"checkpoint {path}: written by another version of wsi-ips; train again")
    try:
        encoder = EncoderSpec(**stored.pop("encoder"))
        origin = EncoderOrigin(**found) if (found := stored.pop("origin")) else None
        tasks = tuple(Task(**{**task, "classes": tuple(task["classes"])}) for task in stored.pop("tasks"))
        card = ModelCard(encoder=encoder, tasks=tasks, origin=origin, **stored)
        POOLINGS[card.pooling]
        if card.position not in get_args(PositionName):
            raise ValueError(f"there is no position `{card.position}`")
        return card
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: damaged ({error}); train again") from error


def write_card(folder: Path, card: ModelCard) -> None:
    """Write a checkpoint's card atomically."""
    atomic_write_json(folder / CARD_NAME, {"schema_version": SCHEMA_VERSION, **asdict(card)})


def checkpoint_fingerprint(folder: Path) -> str:
    """Return the fingerprint of a checkpoint as an input of tile scores: of its training and its weights.

    The calibration is not part of it: it changes how a slide is called, but no stored score.

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
