"""Checkpoints: weights in safetensors, everything else in JSON next to them. No pickle is ever loaded."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsi_ips.errors import CheckpointError
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint_card import WEIGHTS_NAME, ModelCard, read_card, write_card
from wsi_ips.model.encoder_families import build_encoder
from wsi_ips.model.freezing import plain_state
from wsi_ips.model.net import IpsNet
from wsi_ips.provenance import atomic_path

TRUNK = "encoder.trunk."
SHOWN = 3  # weights that do not fit, named in a message


def build_net(card: ModelCard, *, pretrained: bool = False, weights: Path | None = None) -> IpsNet:
    """Build the network of a card with fresh weights; arguments as for :func:`build_encoder`."""
    return IpsNet(build_encoder(card.encoder, pretrained=pretrained, weights=weights), card)


def save_checkpoint(folder: Path, net: IpsNet, card: ModelCard) -> None:
    """Write the weights, then the card: a folder without a card is not a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, plain_state(net))
    write_card(folder, card)


def load_checkpoint(folder: Path, *, tasks: tuple[Task, ...] | None = None) -> tuple[IpsNet, ModelCard]:
    """Read a network, in evaluation mode, and its card; if `tasks` is given, they must match the card's."""
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
    """Raise a `CheckpointError` that lists both if a checkpoint was made for other tasks."""
    if tasks != card.tasks:
        raise CheckpointError(
            f"checkpoint {folder}: made for {_described(card.tasks)}; the recipe has {_described(tasks)}; set "
            "`labels.classes` (and `labels.further`) to those of the checkpoint or train again"
        )


def start_from_checkpoint(net: IpsNet, folder: Path) -> None:
    """Load the weights of a checkpoint into a network, in place (``model.start``).

    The heads stay fresh where the checkpoint has other tasks. The trunk stays fresh where the checkpoint has none,
    because it was trained on imported features.
    """
    card, stored = read_card(folder), _read_weights(folder)
    own = net.state_dict()
    fresh = (*(() if card.tasks == net.tasks else ("head.",)), *((TRUNK,) if card.encoder.features else ()))
    wanted = {name: tensor for name, tensor in own.items() if not name.startswith(fresh)}
    wrong = [name for name, tensor in wanted.items() if name not in stored or stored[name].shape != tensor.shape]
    if wrong:
        named = ", ".join(_mismatch(name, own, stored) for name in wrong[:SHOWN])
        more = " ..." if len(wrong) > SHOWN else ""
        raise CheckpointError(
            f"key `model.start`: {folder} is built differently ({named}{more}); it has "
            f"`encoder: {card.encoder.name}`, `projector: {card.encoder.projector or 'null'}`, "
            f"`pooling: {card.pooling}`, `heads: {card.heads}`, `key_width: {card.key_width}` and {len(card.tasks)} "
            "tasks: use the same"
        )
    net.load_state_dict({name: stored[name] for name in wanted}, strict=False)


def load_trunk(trunk: nn.Module, folder: Path) -> None:
    """Load the trunk's weights from a checkpoint."""
    stored = _read_weights(folder)
    try:
        trunk.load_state_dict({k.removeprefix(TRUNK): t for k, t in stored.items() if k.startswith(TRUNK)})
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {folder}: its encoder does not fit its card ({error})") from error


def add_trunk(folder: Path, trunk: nn.Module) -> None:
    """Add the trunk to a checkpoint that was trained on features, so that it takes pixels too."""
    trained = _read_weights(folder)
    _write_weights(folder, trained | {f"{TRUNK}{name}": tensor for name, tensor in trunk.state_dict().items()})


def _write_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    needs = sum(tensor.nbytes for tensor in stored.values())
    with atomic_path(folder / WEIGHTS_NAME, needs=needs) as temporary:
        save_file(stored, temporary)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_NAME
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read ({error}); train again") from error
    return weights


def _mismatch(name: str, own: dict[str, Tensor], stored: dict[str, Tensor]) -> str:
    there = "x".join(map(str, stored[name].shape)) if name in stored else "absent"
    return f"{name} {there} for {'x'.join(map(str, own[name].shape))}"


def _described(tasks: tuple[Task, ...]) -> str:
    first, *others = [f"{', '.join(t.classes)}{' (any of them)' if t.kind == 'multi' else ''}" for t in tasks]
    further = [f"`{task.name}` {classes}" for task, classes in zip(tasks[1:], others, strict=True)]
    return "; ".join([f"classes {first}", *further])
