"""The gradient of one step, in one pass or in two.

In one pass, the activations of all winners of all slides are kept until the backward pass: memory grows with M·B. In
two passes they are never kept together:

1. embed the winners without gradient, a micro-batch at a time; pool, take the loss, and its gradient with respect to
   the embeddings, dL/dE (a small table);
2. embed each micro-batch again with gradient and propagate its rows of dL/dE back into the encoder.

The sum over micro-batches is the ordinary gradient, because an embedding depends on its own patch only (live batch
statistics rule two passes out). Random numbers of the first pass (dropout, stochastic depth) are replayed in the
second. The idea is that of gradient caching (Gao et al., 2021).

What still grows with M·B: pixels as uint8 in main memory, and the tables of embeddings and their gradient. Call these
functions within autocast; backward passes leave it, as PyTorch asks. A loss scaled by ``GradScaler`` scales the whole
gradient, that of the encoder through dL/dE. An encoder that draws random numbers (Swin Transformers of timm have
stochastic depth; ResNets draw none) draws other ones with another ``micro_batch``, as with another seed.

Shapes: K_b winners of slide b, n = sum of K_b, B slides, D width.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from wsi_ips.errors import TrainingError
from wsi_ips.model.encoder import Encoder
from wsi_ips.scanning import Prepare, Winners

MEASURED_TILES = 2  # winners from which the memory of one winner's activations is measured
SPARE = 1.5  # times the saved activations, for what else the backward pass needs (their gradients, workspaces)


class HasEncoder(Protocol):
    """A network whose encoder learns."""

    encoder: Encoder

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """All parameters, those of the encoder included."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""


LossOf = Callable[[Tensor, Tensor], Tensor]  # (embeddings (B, K, D), mask (B, K)) -> scalar loss


def plain_gradient(encoder: nn.Module, winners: Winners, prepare: Prepare, loss_of: LossOf) -> Tensor:
    """Add the gradient of a loss to all parameters, in one pass; return the loss, detached.

    ``encoder`` turns float patches (n, 3, h, w) into embeddings (n, D); ``prepare`` makes its input, always the same
    for the same tile; ``loss_of`` is pooling, head and loss.
    """
    embedded = encoder(winners.patches(0, len(winners), prepare))  # (n, D)
    loss = loss_of(*winners.padded(embedded))
    _backward(loss)
    return loss.detach()


def two_pass_gradient(
    encoder: nn.Module, winners: Winners, prepare: Prepare, loss_of: LossOf, *, micro_batch: int
) -> Tensor:
    """Do what :func:`plain_gradient` does, in two passes, with ``micro_batch`` patches in the encoder at a time.

    Equal to it up to rounding (float64: 1e-10) where the encoder draws no random numbers; where it does, equal to one
    pass through the same micro-batches. Raises a :class:`TrainingError` if the encoder uses batch statistics.
    """
    if uses_batch_statistics(encoder):
        raise TrainingError(
            "the encoder uses batch statistics, so its gradient cannot be taken in parts: leave `model.norm: auto` "
            "(frozen batch norm, or group norm from scratch)"
        )
    parts = winners.parts(micro_batch)
    device = next(encoder.parameters()).device
    states: list[RandomState] = []
    rows = []
    with torch.no_grad():
        for a, b in parts:
            states.append(RandomState(device))
            rows.append(encoder(winners.patches(a, b, prepare)))  # (b - a, D)
    # Older versions of PyTorch reuse weights that autocast has cast without gradient in passes with gradient (its issue
    # 112583): the encoder would learn nothing, silently.
    torch.clear_autocast_cache()
    embedded = torch.cat(rows).requires_grad_()  # (n, D)
    rows.clear()
    loss = loss_of(*winners.padded(embedded))
    _backward(loss)
    if embedded.grad is None or not _learns(encoder):
        return loss.detach()
    after = RandomState(device)
    for (a, b), state in zip(parts, states, strict=True):
        state.restore()
        _backward(encoder(winners.patches(a, b, prepare)), embedded.grad[a:b])
    after.restore()
    return loss.detach()


def _backward(output: Tensor, gradient: Tensor | None = None) -> None:
    with torch.autocast(output.device.type, enabled=False):
        output.backward(gradient)


def _learns(encoder: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in encoder.parameters())


class StepGradient:
    """Chooses one pass or two by a memory budget, and falls back once if memory still runs out.

    ``kind`` ``auto`` is one pass where its activations fit into ``budget_gb`` (1e9 bytes). Two passes take
    ``micro_batch`` patches at a time, fewer where they do not fit.
    """

    def __init__(
        self,
        kind: Literal["auto", "plain", "two-pass"],
        *,
        micro_batch: int,
        budget_gb: float,
        note: Callable[[str], None],
    ) -> None:
        self.kind, self.micro_batch, self.budget_gb, self.note = kind, micro_batch, budget_gb, note
        self._tile_gb: float | None = None
        self._last: Literal["plain", "two-pass"] = "plain"
        self._told = self._fell_back = False

    def __call__(self, net: HasEncoder, winners: Winners, prepare: Prepare, loss_of: LossOf) -> Tensor:
        """Add to the gradient of all parameters of ``net``; return the loss, detached.

        ``loss_of`` is called again where memory runs out; a :class:`TrainingError` says that it ran out twice.
        """
        earlier = [(parameter, parameter.grad) for parameter in net.parameters() if parameter.grad is not None]
        net.zero_grad(set_to_none=True)  # so that a second try starts from zero
        loss = self._with_fallback(net, winners, prepare, loss_of)
        for parameter, gradient in earlier:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return loss

    def _with_fallback(self, net: HasEncoder, winners: Winners, prepare: Prepare, loss_of: LossOf) -> Tensor:
        before = RandomState(next(net.parameters()).device)
        try:
            self._last = self._choose(net.encoder, winners, prepare)
            if self._last == "plain":
                return plain_gradient(net.encoder, winners, prepare, loss_of)
            return two_pass_gradient(net.encoder, winners, prepare, loss_of, micro_batch=self.micro_batch)
        except torch.cuda.OutOfMemoryError as error:
            self._fall_back(net.encoder, error)
        for parameter in net.parameters():
            parameter.grad = None
        before.restore()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._with_fallback(net, winners, prepare, loss_of)

    def _choose(self, encoder: nn.Module, winners: Winners, prepare: Prepare) -> Literal["plain", "two-pass"]:
        tied = uses_batch_statistics(encoder)
        if self.kind == "plain" or (tied and self.kind == "auto"):
            return "plain"
        if tied or not _learns(encoder):
            return "two-pass"  # refuses the former, has no second pass for the latter
        if self._tile_gb is None:
            self._tile_gb = SPARE * activation_bytes(encoder, winners, prepare) / 1e9
            fits = max(1, int(self.budget_gb / self._tile_gb))
            if fits < self.micro_batch:
                self.note(
                    f"{self.micro_batch} patches at a time would need about {self.micro_batch * self._tile_gb:.1f} GB, "
                    f"the budget is {self.budget_gb:g} GB (`compute.gpu_memory_gb`): {fits} at a time"
                )
                self.micro_batch = fits
        needed_gb = self._tile_gb * len(winners)
        if self.kind == "auto" and needed_gb <= self.budget_gb:
            return "plain"
        if self.kind == "auto" and not self._told:
            self._told = True
            self.note(
                f"{len(winners)} winners at once would need about {needed_gb:.1f} GB, the budget is "
                f"{self.budget_gb:g} GB (`compute.gpu_memory_gb`): learning in two passes of {self.micro_batch} patches"
            )
        return "two-pass"

    def _fall_back(self, encoder: nn.Module, error: torch.cuda.OutOfMemoryError) -> None:
        """Take two passes instead of one, or half the micro-batch; once."""
        if uses_batch_statistics(encoder):
            raise TrainingError(
                "memory ran out, and an encoder with batch statistics cannot be trained in parts: leave `model.norm: "
                "auto`, or take a smaller `model.memory_size` or `training.batch_slides`"
            ) from error
        if self._fell_back:
            raise TrainingError(
                f"memory ran out again with {self.micro_batch} patches at a time; set `compute.gpu_memory_gb` to what "
                "is free, or take a smaller `model.encoder`"
            ) from error
        self._fell_back = True
        if self._last == "two-pass":
            self.micro_batch = max(1, self.micro_batch // 2)
        self.kind = "two-pass"
        self.note(f"memory ran out: continuing in two passes of {self.micro_batch} patches at a time")


def activation_bytes(encoder: nn.Module, winners: Winners, prepare: Prepare) -> int:
    """Return the bytes that are kept for the backward pass of one patch, at least 1."""
    before = RandomState(next(encoder.parameters()).device)
    # Measured on a few winners and on one; the difference excludes weights and what autocast makes of them.
    count = min(MEASURED_TILES, len(winners))
    kept = []
    for tiles in (count, 1) if count > 1 else (1,):
        with torch.enable_grad(), SavedBytes() as saved:
            encoder(winners.patches(0, tiles, prepare))
        kept.append(saved.peak)
    before.restore()
    return max(1, (kept[0] - kept[1]) // (count - 1) if count > 1 else kept[0])


def uses_batch_statistics(encoder: nn.Module) -> bool:
    """Return whether the embedding of a patch depends on the other patches of its batch."""
    return any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in encoder.modules())


class RandomState:
    """State of the random number generators of the CPU and of one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cpu = device, torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Set the generators back to this state."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


class SavedBytes:
    """Counts the bytes that autograd keeps for backward passes in a ``with`` block: ``now``, and at most (``peak``).

    Counted from the tensors themselves, so the figures are the same on every machine. A storage counts once, from the
    first operation that keeps it until the last one releases it; weights count too, the same for any batch.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._holders: Counter[int] = Counter()  # address of a storage -> operations that keep it
        self._hooks = saved_tensors_hooks(self._keep, lambda kept: kept.tensor)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _keep(self, tensor: Tensor) -> _Kept:
        kept, storage = _Kept(tensor), tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        self.now += 0 if self._holders[address] else size
        self.peak = max(self.peak, self.now)
        self._holders[address] += 1
        weakref.finalize(kept, self._release, address, size)  # called before the storage is freed
        return kept

    def _release(self, address: int, size: int) -> None:
        self._holders[address] -= 1
        self.now -= 0 if self._holders[address] else size


class _Kept:
    """A tensor that one operation of the graph keeps."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
