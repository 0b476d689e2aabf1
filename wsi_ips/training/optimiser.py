"""The update of the weights: learning rate, mixed precision, and a running average of the weights (EMA)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from wsi_ips.model.net import IpsNet


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the same learning rate for all parameters."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def warmup_cosine(step: int, *, warmup: int, total: int) -> float:
    """Return the factor of the learning rate: linear to 1 over ``warmup`` steps, then cosine to 0.001 at ``total``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.001 + 0.999 * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def averaged(net: IpsNet, decay: float) -> AveragedModel:
    """Return a copy of a network whose weights are a running average; buffers are those of the network.

    The decay is ``min(decay, (1 + n) / (10 + n))`` after n steps, so that the first weights are soon forgotten.
    """

    def average(averages: Sequence[Tensor], now: Sequence[Tensor], steps: Tensor | int) -> None:
        n = int(steps)
        torch._foreach_lerp_(list(averages), list(now), 1 - min(decay, (1 + n) / (10 + n)))

    with torch.no_grad():
        return AveragedModel(net, multi_avg_fn=torch.no_grad()(average))


class MixedPrecision:
    """Autocast of the encoder where it learns, and the scale of the loss.

    Weights, optimiser, pooling and loss stay in float32. bfloat16 has the range of float32 and needs no scale; with
    float16 the loss is scaled up, and a step whose gradient overflows is skipped.

    Parameters
    ----------
    device
        Where the network is.
    dtype
        Type of the encoder's activations; float32 changes nothing.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    @property
    def scales(self) -> bool:
        """Whether steps are skipped when their scaled gradient overflows."""
        return self._scaler.is_enabled()

    def encoder(self) -> AbstractContextManager[object]:
        """Return a ``with`` block in which the encoder runs in reduced precision."""
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    def full(self) -> AbstractContextManager[object]:
        """Return a ``with`` block in which everything runs in full precision."""
        return torch.autocast(self._device.type, enabled=False)

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss to take the gradient of."""
        return self._scaler.scale(loss)

    def unscale(self, optimiser: torch.optim.Optimizer) -> None:
        """Bring gradients back to their own scale."""
        self._scaler.unscale_(optimiser)

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """Step the optimiser, unless the gradient overflowed."""
        self._scaler.step(optimiser)
        self._scaler.update()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what to store: nothing where nothing is scaled."""
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self._scaler.state_dict().items()}

    def load_state_dict(self, stored: Mapping[str, Tensor]) -> None:
        """Restore what was stored."""
        if self.scales:
            kinds = {name: type(value) for name, value in self._scaler.state_dict().items()}
            self._scaler.load_state_dict({name: kinds[name](value.item()) for name, value in stored.items()})
