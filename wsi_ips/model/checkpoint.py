"""Checkpoints: weights in safetensors, everything else in JSON beside them. No pickle is ever loaded."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from wsi_ips.errors import CheckpointError
from wsi_ips.labels import Task
from wsi_ips.model.card import (
    CARD_NAME,
    WEIGHTS_NAME,
    ModelCard,
    checkpoint_fingerprint,
    read_card,
    write_card,
)
from wsi_ips.model.encoder import build_encoder
from wsi_ips.model.freezing import plain_state
from wsi_ips.model.net import IpsNet
from wsi_ips.model.rules import selection_rule
from wsi_ips.provenance import atomic_path

__all__ = [
    "CARD_NAME",
    "WEIGHTS_NAME",
    "ModelCard",
    "build_net",
    "checkpoint_fingerprint",
    "load_checkpoint",
    "read_card",
    "require_tasks",
    "save_checkpoint",
]


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
        evidence=card.evidence,
    )


def save_checkpoint(folder: Path, net: IpsNet, card: ModelCard) -> None:
    """Write weights, then the card: a folder without a card is no checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in plain_state(net).items()}
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        save_file(weights, temporary)
    write_card(folder, card)


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
    if tasks is not None:
        require_tasks(folder, card, tasks)
    net = build_net(card)
    path = folder / WEIGHTS_NAME
    try:
        net.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path}: does not fit its card ({error}); train again") from error
    return net.eval(), card


def require_tasks(folder: Path, card: ModelCard, tasks: tuple[Task, ...]) -> None:
    """Refuse a checkpoint that was made for other tasks or classes.

    Raises
    ------
    CheckpointError
        Names both.
    """
    if tasks != card.tasks:
        raise CheckpointError(
            f"checkpoint {folder}: made for {_described(card.tasks)}; the recipe has {_described(tasks)}; set "
            "`labels.classes` (and `labels.further`) to those of the checkpoint or train again"
        )


def _described(tasks: tuple[Task, ...]) -> str:
    """The classes of the first task, then the further ones by name."""
    first, *others = [f"{', '.join(t.classes)}{' (any of them)' if t.kind == 'multi' else ''}" for t in tasks]
    further = [f"`{task.name}` {classes}" for task, classes in zip(tasks[1:], others, strict=True)]
    return "; ".join([f"classes {first}", *further])
