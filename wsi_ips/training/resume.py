"""The state of a training on disk, so that it goes on where it was stopped or killed.

One safetensors file, replaced whole: weights, what the optimiser (and whoever else is named) remembers, the generators
of random numbers, and in its header the position and the figures so far. Everything else that is random follows from
(seed, epoch, slide, tile). On a CPU a training that goes on ends with the very weights of one that was never stopped.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wsi_ips.model.net import IpsNet
from wsi_ips.provenance import atomic_path
from wsi_ips.training.record import EpochRecord

SCHEMA_VERSION = 2
SAVE_EVERY_S = 60.0
STOPPING_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C, a polite kill, and what SLURM sends before time is up (``--signal=USR1@120``)."""


class Stateful(Protocol):
    """Something else that remembers what training needs; a ``torch.nn.Module`` is one."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name."""
        ...

    def load_state_dict(self, stored: Mapping[str, Any]) -> object:
        """Take them over."""
        ...


@dataclass
class Position:
    """Where a training stands.

    Attributes
    ----------
    epoch
        The one at work, counted from 1.
    step
        Steps of it that are done.
    total
        Steps done in all.
    loss, right
        Sums over the slides of the epoch so far.
    sums
        Of other figures, as :class:`Meter` keeps them.
    seconds
        Time spent in earlier calls.
    history
        Figures of the epochs that are done.
    """

    epoch: int = 1
    step: int = 0
    total: int = 0
    loss: float = 0.0
    right: float = 0.0
    sums: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)

    def after(self, record: EpochRecord, seconds: float) -> Position:
        """At the start of the next epoch."""
        return Position(self.epoch + 1, total=self.total, seconds=seconds, history=[*self.history, record])


class StateFile:
    """Saves and loads the state of one training.

    Parameters
    ----------
    path
        The file.
    fingerprint
        Of the training; the state of another one is not loaded.
    every_s
        Seconds between saves.
    """

    def __init__(self, path: Path, fingerprint: str, *, every_s: float = SAVE_EVERY_S) -> None:
        self.path, self._fingerprint, self._every_s = path, fingerprint, every_s
        self._saved = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self._saved >= self._every_s

    def save(
        self,
        net: IpsNet,
        optimiser: torch.optim.Optimizer,
        position: Position,
        also: Mapping[str, Stateful] = MappingProxyType({}),
    ) -> None:
        """Write the state, of other things too; a reader finds the old one or this one, whole."""
        tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
        for number, entries in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{key}": torch.as_tensor(value) for key, value in entries.items()}
        for owner, other in also.items():
            tensors |= {f"also.{owner}.{name}": tensor for name, tensor in other.state_dict().items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors |= {f"random.cuda.{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
        header = {
            "schema_version": str(SCHEMA_VERSION),
            "fingerprint": self._fingerprint,
            "position": json.dumps(asdict(position)),
        }
        with atomic_path(self.path) as temporary:
            save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary, header)
        self._saved = time.monotonic()

    def load(
        self, net: IpsNet, optimiser: torch.optim.Optimizer, also: Mapping[str, Stateful] = MappingProxyType({})
    ) -> Position | None:
        """Bring network, optimiser, random numbers and other things to the stored state.

        Returns
        -------
        Position or None
            None, and nothing changed, where there is no state of this training that can be read.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                ours = {"schema_version": str(SCHEMA_VERSION), "fingerprint": self._fingerprint}
                if not ours.items() <= header.items():
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError):
            return None
        stored: dict[str, Any] = json.loads(header["position"])
        history = [EpochRecord.from_dict(record) for record in stored.pop("history")]
        net.load_state_dict(_below(tensors, "net."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(tensors, "optimiser.").items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = tensor
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        for owner, other in also.items():
            other.load_state_dict(_below(tensors, f"also.{owner}."))
        torch.set_rng_state(tensors["random.cpu"])
        for name, tensor in _below(tensors, "random.cuda.").items():
            if torch.cuda.is_available() and int(name) < torch.cuda.device_count():
                torch.cuda.set_rng_state(tensor, int(name))
        return Position(**stored, history=history)


class StopRequest:
    """Whether somebody asked the training to stop after the step at work."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take a first signal as a request; a second one stops at once, and what was saved last stays."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only there signals can be handled
            return
        before = {number: signal.signal(number, self._ask) for number in STOPPING_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
