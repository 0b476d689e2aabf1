"""Reduced precision of the encoder where it learns.

Weights, optimiser, pooling and loss stay in float32. bfloat16 has the range of float32 and needs nothing else; float16
has not, so its loss is scaled up, and a step whose gradient overflows is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor


class ReducedPrecision:
    """Autocast and the scale of the loss.

    Parameters
    ----------
    device
        Where the network lives.
    dtype
        Of the encoder's activations; float32 changes nothing.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    @property
    def scales(self) -> bool:
        """Whether steps may be left out because their scaled gradient overflows."""
        return self._scaler.is_enabled()

    def encoder(self) -> AbstractContextManager[object]:
        """Within it the encoder runs in reduced precision."""
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    def full(self) -> AbstractContextManager[object]:
        """Within it nothing does."""
        return torch.autocast(self._device.type, enabled=False)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss whose gradient is to be taken."""
        return self._scaler.scale(loss)

    def unscale(self, optimiser: torch.optim.Optimizer) -> None:
        """Bring gradients back to their own scale."""
        self._scaler.unscale_(optimiser)

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """Step the optimiser, unless the gradient overflowed."""
        self._scaler.step(optimiser)
        self._scaler.update()

    def state_dict(self) -> dict[str, Tensor]:
        """What to store: nothing where nothing is scaled."""
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self._scaler.state_dict().items()}

    def load_state_dict(self, stored: Mapping[str, Tensor]) -> None:
        """Take over what was stored."""
        if self.scales:
            kinds = {name: type(value) for name, value in self._scaler.state_dict().items()}
            self._scaler.load_state_dict({name: kinds[name](value.item()) for name, value in stored.items()})
