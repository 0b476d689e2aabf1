"""Memory that autograd holds: what a backward pass needs kept, now and at the worst moment.

Counted from the tensors themselves, not from the process, so the figures are the same on every machine and every run.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class SavedBytes:
    """Counts the bytes kept for backward passes by what runs in its ``with`` block.

    A storage counts once, however many operations keep it, from the first until the last lets it go. Weights count too:
    the same few bytes whatever the batch.

    Attributes
    ----------
    now
        Bytes kept at this moment.
    peak
        Most bytes kept at any moment.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._holders: dict[int, int] = {}  # address of a storage -> operations that keep it
        self._hooks = saved_tensors_hooks(self._keep, _Kept.give)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _keep(self, tensor: Tensor) -> _Kept:
        return _Kept(self, tensor)

    def take(self, tensor: Tensor) -> None:
        """One more operation keeps a tensor."""
        storage = tensor.untyped_storage()
        holders = self._holders.get(storage.data_ptr(), 0)
        self._holders[storage.data_ptr()] = holders + 1
        self.now += 0 if holders else storage.nbytes()
        self.peak = max(self.peak, self.now)

    def release(self, tensor: Tensor) -> None:
        """One operation less keeps a tensor."""
        storage = tensor.untyped_storage()
        holders = self._holders.pop(storage.data_ptr()) - 1
        if holders:
            self._holders[storage.data_ptr()] = holders
        else:
            self.now -= storage.nbytes()


class _Kept:
    """A tensor in the hands of one operation of the graph."""

    def __init__(self, count: SavedBytes, tensor: Tensor) -> None:
        self._count, self._tensor = count, tensor
        count.take(tensor)

    def give(self) -> Tensor:
        """What was kept."""
        return self._tensor

    def __del__(self) -> None:
        self._count.release(self._tensor)
