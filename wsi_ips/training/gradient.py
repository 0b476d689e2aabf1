"""The gradient of one step, at once or in two passes.

At once, the activations of all winners of all slides are kept until the backward pass: memory grows with M·B. In two
passes they are never kept together:

1. embed the winners without gradient, a micro-batch at a time; pool, take the loss, and its gradient with respect to
   the embeddings, dL/dE (a small table);
2. embed each micro-batch again with gradient and push its rows of dL/dE back into the encoder.

The sum over micro-batches is the ordinary gradient, for an embedding depends on its own patch only. What random
numbers the encoder drew in the first pass (dropout, stochastic depth) it draws again in the second. Not possible with
live batch statistics, which tie the patches of a batch together.

The idea is that of gradient caching (Gao et al., 2021), with the random state replayed.

Shapes: K_b winners of slide b, n = sum of K_b, B slides, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsi_ips.errors import TrainingError
from wsi_ips.model.net import IpsNet
from wsi_ips.scanning import Prepare, Winners

SPARE = 1.5
"""Of the memory of saved activations: what the backward pass needs besides (gradients of activations, workspaces)."""

LossOf = Callable[[Tensor, Tensor], Tensor]
"""(embeddings (B, K, D), mask (B, K)) -> scalar loss."""


def plain_gradient(encoder: nn.Module, winners: Winners, prepare: Prepare, loss_of: LossOf) -> Tensor:
    """Add the gradient of a loss to all parameters, in one pass; the loss, detached.

    Parameters
    ----------
    encoder
        Float patches (n, 3, h, w) to embeddings (n, D).
    winners
        What to learn from.
    prepare
        Turns uint8 pixels into the encoder's input; the same pixels for the same tile.
    loss_of
        Pooling, head and loss; may be scaled (``GradScaler``), then the gradient is.
    """
    embedded = encoder(winners.patches(0, len(winners), prepare))  # (n, D)
    loss = loss_of(*winners.padded(embedded))
    loss.backward()
    return loss.detach()


def two_pass_gradient(
    encoder: nn.Module, winners: Winners, prepare: Prepare, loss_of: LossOf, *, micro_batch: int
) -> Tensor:
    """Add the gradient of a loss to all parameters, in two passes; the loss, detached.

    Memory is that of ``micro_batch`` patches, whatever M and B. Equal to :func:`plain_gradient` up to rounding
    (float64: 1e-10) where the encoder draws no random numbers; where it does, equal to one pass that goes through
    the same micro-batches.

    Parameters
    ----------
    encoder, winners, prepare, loss_of
        As for :func:`plain_gradient`.
    micro_batch
        Patches in the encoder at a time.

    Raises
    ------
    TrainingError
        The encoder uses batch statistics.
    """
    require_independent_patches(encoder)
    parts = winners.parts(micro_batch)
    device = next(encoder.parameters()).device
    states, rows = [], []
    with torch.no_grad():
        for a, b in parts:
            states.append(_RandomState(device))
            rows.append(encoder(winners.patches(a, b, prepare)))  # (b - a, D)
    embedded = torch.cat(rows).requires_grad_()  # (n, D)
    loss = loss_of(*winners.padded(embedded))
    loss.backward()
    if embedded.grad is None or not any(p.requires_grad for p in encoder.parameters()):
        return loss.detach()
    after = _RandomState(device)
    for (a, b), state in zip(parts, states, strict=True):
        state.restore()
        again = encoder(winners.patches(a, b, prepare))  # (b - a, D)
        again.backward(embedded.grad[a:b])
    after.restore()
    return loss.detach()


class StepGradient:
    """Chooses between the two by a memory budget, and comes down once where memory runs out after all.

    Parameters
    ----------
    kind
        ``plain``, ``two-pass``, or ``auto``: plain where its activations fit into the budget.
    micro_batch
        Patches in the encoder at a time, in two passes.
    budget_gb
        Memory for activations, GB (1e9 bytes).
    note
        Told what was chosen, and when it changes.
    """

    def __init__(self, kind: str, *, micro_batch: int, budget_gb: float, note: Callable[[str], None]) -> None:
        self.kind, self.micro_batch, self.budget_gb, self.note = kind, micro_batch, budget_gb, note
        self._tile_bytes: int | None = None
        self._came_down = False
        self._told: str | None = None

    def __call__(self, net: IpsNet, winners: Winners, prepare: Prepare, loss_of: LossOf) -> Tensor:
        """Set the gradient of all parameters of ``net``, which hold none yet; the loss, detached.

        ``loss_of`` is called again where memory runs out.

        Raises
        ------
        TrainingError
            Memory runs out, also with half the micro-batch.
        """
        kind = self._choose(net.encoder, winners, prepare)
        before = _RandomState(next(net.parameters()).device)
        try:
            return self._run(kind, net.encoder, winners, prepare, loss_of)
        except torch.cuda.OutOfMemoryError as error:
            if self._came_down:
                raise TrainingError(
                    f"memory ran out again with {self.micro_batch} patches at a time; set `compute.micro_batch` lower, "
                    "or `compute.chunk_size`, or take a smaller `model.encoder`"
                ) from error
        self._come_down(kind)
        for parameter in net.parameters():
            parameter.grad = None
        before.restore()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self(net, winners, prepare, loss_of)

    def _run(self, kind: str, encoder: nn.Module, winners: Winners, prepare: Prepare, loss_of: LossOf) -> Tensor:
        if kind == "plain":
            return plain_gradient(encoder, winners, prepare, loss_of)
        return two_pass_gradient(encoder, winners, prepare, loss_of, micro_batch=self.micro_batch)

    def _come_down(self, kind: str) -> None:
        """Two passes instead of one, or half the micro-batch; once."""
        self._came_down, self.kind = True, "two-pass"
        if kind == "two-pass":
            self.micro_batch = max(1, self.micro_batch // 2)
        self.note(f"memory ran out: going on in two passes of {self.micro_batch} patches at a time")

    def _choose(self, encoder: nn.Module, winners: Winners, prepare: Prepare) -> str:
        if self.kind != "auto":
            return self.kind
        if not any(p.requires_grad for p in encoder.parameters()) or uses_batch_statistics(encoder):
            return "plain"
        if self._tile_bytes is None:
            self._tile_bytes = activation_bytes(encoder, winners, prepare)
        needed_gb = SPARE * self._tile_bytes * len(winners) / 1e9
        kind = "plain" if needed_gb <= self.budget_gb else "two-pass"
        if kind != self._told and kind == "two-pass":
            self.note(
                f"{len(winners)} winners at once would need about {needed_gb:.1f} GB, the budget is "
                f"{self.budget_gb:g} GB (`compute.gpu_memory_gb`): learning in two passes of {self.micro_batch} patches"
            )
        self._told = kind
        return kind


def activation_bytes(encoder: nn.Module, winners: Winners, prepare: Prepare) -> int:
    """Bytes that the backward pass of one patch needs kept, measured on a few winners."""
    count = min(4, len(winners))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    before = _RandomState(next(encoder.parameters()).device)
    patches = winners.patches(0, count, prepare)
    hooks: AbstractContextManager[Any] = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.enable_grad(), hooks:
        out = encoder(patches)
    del out
    before.restore()
    return sum(size for place, size in kept.items() if place not in own) // count


def uses_batch_statistics(encoder: nn.Module) -> bool:
    """Whether the embedding of a patch depends on the patches beside it."""
    return any(isinstance(m, _BatchNorm) and (m.training or not m.track_running_stats) for m in encoder.modules())


def require_independent_patches(encoder: nn.Module) -> None:
    """Refuse live batch statistics."""
    if uses_batch_statistics(encoder):
        raise TrainingError(
            "the encoder uses batch statistics, so its gradient cannot be taken in parts: leave `model.norm: auto` "
            "(frozen batch norm, or group norm from scratch), or set `compute.gradient: plain`"
        )


class _RandomState:
    """Where the generators of the CPU and of one CUDA device stand."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Let them stand there again."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
