"""Figures of an epoch: sums while it runs, a record when it is done.

The sums are part of the stored state, so a training that was stopped within an epoch reports the same figures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.provenance import peak_rss_mb

TILES_COMPARED = 256
"""Best tiles of a slide that are remembered until its next visit."""


@dataclass(frozen=True)
class Cost:
    """What an epoch cost on this machine; the only figures that differ when a training is repeated."""

    tiles_per_s: float | None  # read and scored per second of the scan; None in a start phase without a scan
    read_share: float  # of the time in steps: waiting for pixels
    scan_share: float  # scoring tiles
    gradient_share: float  # learning from those kept
    peak_rss_mb: float  # largest resident memory of the process so far
    peak_gpu_mb: float | None  # largest memory of tensors on the GPU so far; None without a GPU


@dataclass(frozen=True)
class EpochRecord:
    """Figures of one epoch."""

    epoch: int  # counted from 1
    loss: float  # mean training loss of the slides
    accuracy: float  # share of correct answers on the training slides, dropout on, mean over tasks
    val_loss: float | None  # mean over validation slides and tasks; None without any and in the start phase
    val_auc: float | None  # mean over classes and tasks; None also where validation slides are of one class
    learning_rate: float  # at the end of the epoch
    gradient_norm: float | None  # before clipping, mean of the steps
    gradient_norm_max: float | None  # the largest of the steps
    attention_entropy: float | None  # over a slide's kept tiles, 0 (all on one) to 1 (even), mean over slides
    selection_overlap: float | None  # share of a slide's best tiles that were among them at its last visit, mean
    seconds: float  # spent on the training so far, in all calls
    cost: Cost

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Build a record from the result of ``dataclasses.asdict``."""
        return cls(**(dict(stored) | {"cost": Cost(**stored["cost"])}))


class Meter:
    """Sums of the running epoch.

    Attributes
    ----------
    sums
        By name the sum of weighted values, the sum of weights and the largest value; plain numbers, stored as JSON.
    """

    def __init__(self, sums: dict[str, list[float]] | None = None) -> None:
        self.sums = {} if sums is None else sums

    def add(self, name: str, value: float, weight: float = 1.0) -> None:
        """Add a value."""
        total, weights, largest = self.sums.get(name, [0.0, 0.0, value])
        self.sums[name] = [total + value * weight, weights + weight, max(largest, value)]

    def mean(self, name: str) -> float | None:
        """Return the weighted mean; None where nothing was added."""
        return self.sums[name][0] / self.sums[name][1] if name in self.sums else None

    def largest(self, name: str) -> float | None:
        """Return the largest value; None where nothing was added."""
        return self.sums[name][2] if name in self.sums else None

    def total(self, name: str) -> float:
        """Return the weighted sum, 0 where nothing was added."""
        return self.sums.get(name, [0.0])[0]

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the seconds of a ``with`` block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def cost(self, device: torch.device) -> Cost:
        """Return the cost, from the clocks ``step``, ``scan``, ``scan_read`` (within it), ``read`` and ``gradient``."""
        steps, scan, within = (self.total(name) for name in ("step", "scan", "scan_read"))
        whole = max(steps, 1e-9)
        return Cost(
            tiles_per_s=round(self.total("tiles") / scan, 1) if scan else None,
            read_share=round((within + self.total("read")) / whole, 4),
            scan_share=round((scan - within) / whole, 4),
            gradient_share=round(self.total("gradient") / whole, 4),
            peak_rss_mb=round(peak_rss_mb(), 1),
            peak_gpu_mb=round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if device.type == "cuda" else None,
        )


class LastSelection:
    """The best tiles of every training slide at its last visit; ``memory_size`` is the number kept per slide (M)."""

    def __init__(self, memory_size: int) -> None:
        self._width = min(memory_size, TILES_COMPARED)
        self._tiles: dict[str, NDArray[np.int32]] = {}

    def overlap(self, slide_id: str, best: NDArray[np.integer]) -> float | None:
        """Remember a slide's best tiles; return the share that was among them last time, None the first time."""
        now, before = best[: self._width].astype(np.int32), self._tiles.get(slide_id)
        self._tiles[slide_id] = now
        return None if before is None else float(np.isin(now, before).mean())

    def state_dict(self) -> dict[str, Tensor]:
        """Return what to store."""
        return {slide_id: torch.from_numpy(tiles) for slide_id, tiles in self._tiles.items()}

    def load_state_dict(self, stored: Mapping[str, Tensor]) -> None:
        """Restore what was stored."""
        self._tiles = {slide_id: tiles.numpy() for slide_id, tiles in stored.items()}


def attention_entropy(weights: Tensor, mask: Tensor) -> Tensor:
    """Return the entropy of attention over its largest possible value, mean over queries; NaN for a single tile.

    Parameters
    ----------
    weights
        Attention over the kept tiles, shape (B, K, T), 0 where there is none.
    mask
        bool, shape (B, K).

    Returns
    -------
    torch.Tensor
        Shape (B,).
    """
    entropy: Tensor = torch.special.entr(weights.double()).sum(1).mean(1)  # (B,)
    return entropy / mask.sum(1).double().log()
