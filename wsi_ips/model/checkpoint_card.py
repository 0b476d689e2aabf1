"""The card of a checkpoint: everything but its weights, and sentences about it for people. It needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from wsi_ips.errors import CheckpointError, RecipeError
from wsi_ips.labels import Task
from wsi_ips.model.encoders import find_preset
from wsi_ips.model.poolings import POOLINGS
from wsi_ips.provenance import atomic_write_json, fingerprint, parse_object

PositionName = Literal["none", "sinusoidal"]
InputName = Literal["pixels", "features"]
WeightsSource = Literal["random", "published", "file", "imported"]

SCHEMA_VERSION = 4
WEIGHTS_SCHEMA = 2  # version of the meaning of the weights; stored scores stay valid as long as it does not change
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "model.json"
NO_OTHERS = ConfigDict(extra="forbid")  # a stored key that this version does not know may change the network


@dataclass(frozen=True)
class EncoderSpec:
    """Everything needed to build an encoder again, without its weights."""

    __pydantic_config__: ClassVar = NO_OTHERS

    name: str  # name as in `model.encoder`, or `imported:NAME` for an encoder that another tool ran
    # `group` replaces all batch norm of the architecture by group norm; `batch` leaves it
    norm: Literal["batch", "group"]
    # Batch norm uses its stored statistics also in training, so that scan and gradient use the same network
    frozen_statistics: bool
    # From the model's page on the hub, so that a trained model can be built again without the network; `build_encoder`
    # fills it in
    architecture: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    projector: int = 0  # width of the learned projector behind the trunk; 0: none
    features: int = 0  # width of another tool's features that it takes instead of patches; 0: it takes patches
    standardised: bool = True  # whether a learned scale and shift follow the trunk

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True)
class EncoderOrigin:
    """Origin of the encoder's weights; their licence depends on it."""

    __pydantic_config__: ClassVar = NO_OTHERS

    # `random`: no weights were given; `published`: the weights published under the encoder's name; `file`: a local
    # file; `imported`: another tool ran the encoder and only its features are known
    source: WeightsSource
    file: str = ""
    # Model ids of the checkpoints that a training started from (`model.start`), the first one first
    through: tuple[str, ...] = ()
    self_supervised: bool = False  # whether the encoder then learned from the training slides' tiles without labels

    def __post_init__(self) -> None:
        object.__setattr__(self, "through", tuple(self.through))


@dataclass(frozen=True, kw_only=True)
class NetSettings:
    """Settings of the network behind its encoder."""

    __pydantic_config__: ClassVar = NO_OTHERS

    # Each has one query of the pooling and one linear head; the first is the slide label of heatmaps
    tasks: tuple[Task, ...] = (Task("label", ("normal", "tumor")),)
    pooling: str = "attention"
    heads: int = 8
    key_width: int = 64
    dropout: float = 0.1
    position: PositionName = "none"  # `sinusoidal` adds the place of a tile to its embedding


@dataclass(frozen=True, kw_only=True)
class ModelCard(NetSettings):
    """Description of a checkpoint, enough to use it on other slides."""

    model_id: str  # short name shown on every picture
    encoder: EncoderSpec
    memory_size: int  # tiles kept per slide (M)
    patch_mpp: float  # scale of the patches it was trained on, µm/px
    patch_px: int  # their side
    fingerprint: str  # of its training
    metrics: Mapping[str, float] = field(default_factory=dict)  # figures of its epoch
    # Sections `slides`, `tissue` and `tiles` of the recipe it was trained with, as far as they decide which pixels the
    # network sees, as plain JSON; None pins nothing
    preparation: Mapping[str, Any] | None = None
    # Facts about the slides and the training, for people, as plain JSON; see `training_facts`
    training: Mapping[str, Any] = field(default_factory=dict)
    origin: EncoderOrigin | None = None  # where the encoder's weights come from; None where nobody recorded it
    input: InputName = "pixels"  # `pixels`, or `features` of an encoder that did not learn
    # Part of the encoder that did not learn, as in `model.freeze`; `lora` where only added matrices learned
    freeze: str | int = "none"


_CARD = TypeAdapter(ModelCard)


def read_card(folder: Path) -> ModelCard:
    """Read a checkpoint's card."""
    path = folder / CARD_NAME
    try:
        stored = parse_object(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {folder}: there is none; run `wsi-ips train` first") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read ({error}); train again") from error
    if stored.pop("schema_version", None) != SCHEMA_VERSION:
        raise CheckpointError(f"checkpoint {path}: written by another version of wsi-ips; train again")
    try:
        card = _CARD.validate_python(stored)
        POOLINGS[card.pooling]
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"checkpoint {path}: damaged (`{key}`: {first['msg']}); train again") from error
    except RecipeError as error:
        raise CheckpointError(f"checkpoint {path}: damaged ({error}); train again") from error
    return card


def write_card(folder: Path, card: ModelCard) -> None:
    """Write a checkpoint's card atomically."""
    atomic_write_json(folder / CARD_NAME, {"schema_version": SCHEMA_VERSION, **asdict(card)})


def checkpoint_fingerprint(folder: Path) -> str:
    """Return the fingerprint of a checkpoint as an input of tile scores: of its training and its weights.

    The calibration is not part of it: it changes how a slide is called, but no stored score.
    """
    card = read_card(folder)
    try:
        weights = hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder}: no weights ({error}); train again") from error
    return fingerprint("checkpoint", WEIGHTS_SCHEMA, card.fingerprint, weights)


def origin_text(card: ModelCard) -> str:
    """Name the initial weights of the encoder, for example ``published initial weights``; empty where not recorded."""
    origin = card.origin
    if origin is None:
        return ""
    began = {
        "random": "random initial weights",
        "published": "published initial weights",
        "file": f"initial weights from {origin.file}",
        "imported": "run by another tool",
    }[origin.source]
    through = f", trained further from {' and then '.join(origin.through)}" if origin.through else ""
    return began + through + (", then self-supervised on the training slides' tiles" if origin.self_supervised else "")


def training_text(card: ModelCard) -> str:
    """Describe what the network was trained on and which part was trained, without a full stop."""
    how = "from slide labels (Iterative Patch Selection)"
    if card.input == "features" or card.encoder.features:
        return f"Trained on stored features of an encoder that did not learn, {how}"
    if card.freeze == "none":
        return f"Trained end to end on pixels {how}"
    frozen = {
        "all": "the encoder did not learn",
        "lora": "of the encoder, only added low-rank matrices (LoRA) learned",
    }.get(str(card.freeze), f"the first {card.freeze} stages of the encoder did not learn")
    return f"Trained on pixels {how}; {frozen}"


def licence_text(card: ModelCard) -> str:
    """Describe the licence terms that the model inherits from its encoder's initial weights."""
    name, origin = card.encoder.name, card.origin
    if origin is None:
        return f"Encoder {name}: the origin of its weights is not recorded; ask the people who trained the model."
    if origin.source == "imported":
        return (
            f"Encoder {name}: another tool computed its features; the licence of its weights also applies to the model."
        )
    if origin.source == "random":
        learned = f" and of those behind {', '.join(origin.through)}" if origin.through else ""
        return f"Encoder {name}: no published weights were used; the terms of its slides and labels{learned} apply."
    file = f" from the file {origin.file}" if origin.source == "file" else ""
    preset = find_preset(name)
    if preset is not None:
        allowed = {True: "commercial use allowed", False: "no commercial use", None: "commercial use: see its page"}
        terms = f"{preset.licence}, {allowed[preset.commercial]}"
        return f"Encoder weights {preset.key}{file}: {terms}. A model trained from them inherits the terms."
    if file:
        return f"Encoder {name}: weights{file}; its terms also apply to the model."
    return f"Encoder {name}: published weights; the licence on their page also applies to the model."
