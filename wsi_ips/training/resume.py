"""The state of a training, saved so that it can resume where it was stopped or killed.

One safetensors file, replaced as a whole: weights, the state of optimiser and others, the generators of random numbers,
and in its header the counters and the figures so far. Everything else that is random follows from
(seed, epoch, slide, tile). On a CPU a resumed training ends with exactly the weights of one that was never stopped.
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
from types import FrameType
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wsi_ips.provenance import atomic_path
from wsi_ips.training.processes import Processes
from wsi_ips.training.tracking import EpochRecord

SCHEMA_VERSION = 3
SAVE_EVERY_S = 60.0
# Ctrl-C, a polite kill, and what SLURM sends before time is up (``--signal=USR1@120``)
STOPPING_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
COUNTERS = ("epoch", "step", "total", "loss", "right", "sums", "seconds")


@dataclass
class TrainingState:
    """Everything that a training needs to resume from this point."""

    record: ClassVar[Any] = EpochRecord
    net: nn.Module
    optimiser: torch.optim.Optimizer
    others: Mapping[str, Any] = field(default_factory=dict)  # other objects with a `state_dict`, by name
    epoch: int = 1  # the running one
    step: int = 0  # steps of the epoch that are done
    total: int = 0  # steps done in all epochs
    loss: float = 0.0  # sum over the slides of the epoch so far
    right: float = 0.0  # the same of correct answers
    sums: dict[str, list[float]] = field(default_factory=dict)  # other figures of the epoch, see Meter
    history: list[Any] = field(default_factory=list)  # records of the epochs that are done, of type `record`
    _began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time spent on the training, in all calls."""
        return time.monotonic() - self._began

    def finish_step(self, loss: float, right: float) -> None:
        """Count a step, with the sums over its slides."""
        self.loss += loss
        self.right += right
        self.step += 1
        self.total += 1

    def finish_epoch(self, record: Any) -> None:
        """Go to the beginning of the next epoch."""
        self.history.append(record)
        self.epoch, self.step, self.loss, self.right, self.sums = self.epoch + 1, 0, 0.0, 0.0, {}

    def counters(self) -> str:
        """Return all values that are not tensors, as JSON."""
        numbers = {name: getattr(self, name) for name in COUNTERS}
        return json.dumps(numbers | {"history": [asdict(record) for record in self.history]})

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, on the CPU."""
        found = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        for number, entries in self.optimiser.state_dict()["state"].items():
            found |= {f"optimiser.{number}.{key}": torch.as_tensor(value) for key, value in entries.items()}
        for owner, other in self.others.items():
            found |= {f"others.{owner}.{name}": tensor for name, tensor in other.state_dict().items()}
        found["random.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            found |= {f"random.cuda.{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}

    def restore(self, counters: str, tensors: Mapping[str, Tensor]) -> None:
        """Restore a stored state, including the random number generators."""
        stored: dict[str, Any] = json.loads(counters)
        self._began = time.monotonic() - stored.pop("seconds")
        self.history = [self.record.from_dict(record) for record in stored.pop("history")]
        for name, value in stored.items():
            setattr(self, name, value)
        self.net.load_state_dict(_below(tensors, "net."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(tensors, "optimiser.").items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = tensor
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})
        for owner, other in self.others.items():
            other.load_state_dict(_below(tensors, f"others.{owner}."))
        torch.set_rng_state(tensors["random.cpu"])
        for name, tensor in _below(tensors, "random.cuda.").items():
            if torch.cuda.is_available() and int(name) < torch.cuda.device_count():
                torch.cuda.set_rng_state(tensor, int(name))


def restore_stored(state: TrainingState, file: StateFile | None, processes: Processes) -> bool:
    """Restore the state that the first process finds in ``file``, in all processes; return whether there is one."""
    counters, tensors = (file.read() if file and processes.is_first else None) or (None, {})
    counters = processes.from_first(counters)
    if counters is None:
        return False
    state.restore(counters, processes.tensors_from_first(tensors))
    return True


class StateFile:
    """The file of the state of one training; the state of another fingerprint is not read."""

    def __init__(self, path: Path, fingerprint: str, *, every_s: float = SAVE_EVERY_S) -> None:
        self.path, self._every_s = path, every_s
        self._header = {"schema_version": str(SCHEMA_VERSION), "fingerprint": fingerprint}
        self._saved = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self._saved >= self._every_s

    def save(self, state: TrainingState) -> None:
        """Write the state; a reader finds the old one or this one, whole."""
        tensors = state.tensors()
        with atomic_path(self.path, needs=sum(tensor.nbytes for tensor in tensors.values())) as temporary:
            save_file(tensors, temporary, self._header | {"counters": state.counters()})
        self._saved = time.monotonic()

    def read(self) -> tuple[str, dict[str, Tensor]] | None:
        """Return what :meth:`TrainingState.restore` takes; None without a readable state of this training."""
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                if not self._header.items() <= header.items():
                    return None
                return header["counters"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError):
            return None


class StopRequest:
    """Request by the user to stop the training after the current step (``asked``).

    ``insistent``: a second signal stops at once. Not with ``torchrun``: signals come from the terminal or SLURM and
    again from ``torchrun``, which itself ends processes that take too long.
    """

    def __init__(self, *, insistent: bool = True) -> None:
        self.asked, self._insistent = False, insistent

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take a first signal as a request; where a second one stops at once, the last saved state is kept."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread can handle signals
            return
        before = {number: signal.signal(number, self._ask) for number in STOPPING_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and self._insistent:
            signal.default_int_handler(number, frame)
        self.asked = True


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
