"""Starting from a trained model: its encoder, projector and pooling, and its heads where the tasks are the same."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsi_ips.errors import CheckpointError
from wsi_ips.model.card import WEIGHTS_NAME, read_card
from wsi_ips.model.net import IpsNet
from wsi_ips.provenance import atomic_path

TRUNK = "encoder.trunk."
SHOWN = 3


def take_over(net: IpsNet, folder: Path) -> None:
    """Give a network the weights of a checkpoint.

    Its heads stay fresh where the checkpoint's tasks are others, its trunk where the checkpoint has none (it was
    trained on imported features).

    Parameters
    ----------
    net
        Changed in place.
    folder
        The checkpoint.

    Raises
    ------
    CheckpointError
        Missing, damaged, or built otherwise; names the parts that differ.
    """
    card, stored = read_card(folder), _weights(folder)
    own = net.state_dict()
    fresh = (*(() if card.tasks == net.tasks else ("head.",)), *((TRUNK,) if card.encoder.features else ()))
    wanted = {name: tensor for name, tensor in own.items() if not name.startswith(fresh)}
    wrong = [name for name, tensor in wanted.items() if name not in stored or stored[name].shape != tensor.shape]
    if wrong:
        told = ", ".join(_told(name, own, stored) for name in wrong[:SHOWN]) + (" ..." if len(wrong) > SHOWN else "")
        raise CheckpointError(
            f"key `model.start`: {folder} is built otherwise ({told}); it has `encoder: {card.encoder.name}`, "
            f"`projector: {card.encoder.projector or 'null'}`, `pooling: {card.pooling}`, `heads: {card.heads}`, "
            f"`key_width: {card.key_width}` and {len(card.tasks)} tasks: take the same"
        )
    net.load_state_dict({name: stored[name] for name in wanted}, strict=False)


def take_trunk(trunk: nn.Module, folder: Path) -> None:
    """Give a trunk the weights of a checkpoint.

    Raises
    ------
    CheckpointError
        Missing, damaged, or of another architecture.
    """
    stored = _weights(folder)
    try:
        trunk.load_state_dict({k.removeprefix(TRUNK): t for k, t in stored.items() if k.startswith(TRUNK)})
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {folder}: its encoder does not fit its card ({error})") from error


def put_trunk(folder: Path, trunk: nn.Module) -> None:
    """Complete a checkpoint that was trained on features: with the trunk it takes pixels too."""
    weights = _weights(folder)
    weights |= {f"{TRUNK}{name}": tensor.detach().cpu().contiguous() for name, tensor in trunk.state_dict().items()}
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        save_file(weights, temporary)


def _weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_NAME
    try:
        weights: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read ({error}); train again") from error
    return weights


def _told(name: str, own: dict[str, Tensor], stored: dict[str, Tensor]) -> str:
    there = "x".join(map(str, stored[name].shape)) if name in stored else "absent"
    return f"{name} {there} for {'x'.join(map(str, own[name].shape))}"
