"""Checkpoints: weights in safetensors, everything else in JSON beside them. No pickle is ever loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from wsi_ips.errors import CheckpointError
from wsi_ips.labels import Task
from wsi_ips.model.encoder import EncoderSpec, build_encoder
from wsi_ips.model.freezing import plain_state
from wsi_ips.model.net import IpsNet, PoolingName, PositionName
from wsi_ips.model.rules import SelectionName, selection_rule
from wsi_ips.provenance import atomic_path, atomic_write_json, fingerprint

SCHEMA_VERSION = 2
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "model.json"


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


def build_net(card: ModelCard, *, pretrained: bool = False, weights: Path | None = None) -> IpsNet:
    """The network a card describes, with fresh weights.

    Parameters
    ----------
    card
        The description.
    pretrained, weights
        Where the encoder's weights come from, as in :func:`build_encoder`.
    """
    return IpsNet(
        build_encoder(card.encoder, pretrained=pretrained, weights=weights),
        tasks=card.tasks,
        heads=card.heads,
        key_width=card.key_width,
        dropout=card.dropout,
        pooling=card.pooling,
        position=card.position,
        rule=selection_rule(card.selection, iteration_size=card.iteration_size),
    )


def save_checkpoint(folder: Path, net: IpsNet, card: ModelCard) -> None:
    """Write weights, then the card: a folder without a card is no checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in plain_state(net).items()}
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        save_file(weights, temporary)
    atomic_write_json(folder / CARD_NAME, {"schema_version": SCHEMA_VERSION, **asdict(card)})


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
        tasks = tuple(Task(**{**task, "classes": tuple(task["classes"])}) for task in stored.pop("tasks"))
        card = ModelCard(encoder=encoder, tasks=tasks, **stored)
        _known("pooling", card.pooling, get_args(PoolingName))
        _known("position", card.position, get_args(PositionName))
        _known("selection", card.selection, get_args(SelectionName))
        return card
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: damaged ({error}); train again") from error


def _known(key: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise ValueError(f"unknown {key} `{name}`")


def load_checkpoint(folder: Path, *, tasks: tuple[Task, ...] | None = None) -> tuple[IpsNet, ModelCard]:
    """Read a checkpoint.

    Parameters
    ----------
    folder
        Folder with the weights and the card.
    tasks
        Tasks the caller expects, in order; None takes those of the checkpoint.

    Raises
    ------
    CheckpointError
        Missing, damaged, or made for other tasks or classes.
    """
    card = read_card(folder)
    if tasks is not None and tasks != card.tasks:
        raise CheckpointError(
            f"checkpoint {folder}: made for {_described(card.tasks)}; the recipe has {_described(tasks)}; set "
            "`labels.classes` (and `labels.further`) to those of the checkpoint or train again"
        )
    net = build_net(card)
    path = folder / WEIGHTS_NAME
    try:
        net.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path}: does not fit its card ({error}); train again") from error
    return net.eval(), card


def _described(tasks: tuple[Task, ...]) -> str:
    """The classes of the first task, then the further ones by name."""
    first, *others = [f"{', '.join(t.classes)}{' (any of them)' if t.kind == 'multi' else ''}" for t in tasks]
    further = [f"`{task.name}` {classes}" for task, classes in zip(tasks[1:], others, strict=True)]
    return "; ".join([f"classes {first}", *further])


def checkpoint_fingerprint(folder: Path) -> str:
    """Fingerprint of a checkpoint as an input of later stages: its card and its very weights.

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
    return fingerprint("checkpoint", SCHEMA_VERSION, card.fingerprint, weights)
