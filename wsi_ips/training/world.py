"""One training in several processes: what they say to each other, and how little.

The first process (rank 0) alone writes files and talks. All hold the same weights. A step needs one conversation, the
sum of gradients, and whatever else all must know rides along with it: the loss, whether somebody failed, whether
somebody was asked to stop. Only slides that several processes scanned need another one. Failures are told at these
moments, so that all end with the same error, at the same step.

Tensors go by NCCL where they are on GPUs, else by gloo; everything else always by gloo.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wsi_ips.cluster.launch import Launch
from wsi_ips.errors import RecipeError, TrainingError, WsiIpsError

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""How long the others wait for the first to tile; when it ends they learn of it at once."""

FILE_PART = 2**26
"""Bytes of a file sent at a time."""


@dataclass(frozen=True)
class StepSums:
    """What the processes came to together in a step.

    Attributes
    ----------
    figures
        Sum of the figures that each gave, same shape, on the CPU.
    stop
        Whether anybody was asked to stop.
    """

    figures: Tensor
    stop: bool


class World:
    """The processes of one training; of one alone, where nothing is ever sent.

    Attributes
    ----------
    rank
        Number of this process; 0 is the first.
    size
        How many there are.
    device
        Where this one computes.
    """

    def __init__(self, device: torch.device, launch: Launch | None = None, timeout_s: float = 3600.0) -> None:
        launch = launch or Launch()
        self.rank, self.size, self.device = launch.rank, launch.size, device
        self._timeout_s = timeout_s
        self._failure: Exception | None = None
        self._buffer: Tensor | None = None
        self._talking: dist.ProcessGroup | None = None
        self._patient: dist.ProcessGroup | None = None

    @classmethod
    @contextmanager
    def joined(cls, launch: Launch, *, device: str = "auto", timeout_s: float = 3600.0) -> Iterator[Self]:
        """Find the other processes and part from them in the end; a process that runs alone has nobody to find.

        Parameters
        ----------
        launch
            Who this process is.
        device
            ``compute.device``; on a machine with several processes each takes the GPU of its number.
        timeout_s
            Seconds to wait for the others in a conversation.

        Raises
        ------
        RecipeError
            More processes than GPUs, or all are told to use the same one.
        TrainingError
            The others do not come.
        """
        chosen = device_of(launch, device)
        world = cls(chosen, launch, timeout_s)
        if not launch.together:
            yield world
            return
        wait = timedelta(seconds=timeout_s)
        with world._listening():
            if chosen.type == "cuda":
                torch.cuda.set_device(chosen)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
                rank=launch.rank,
                world_size=launch.size,
                timeout=wait,
            )
            world._talking = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=wait))
            world._patient = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))
        try:
            yield world
        finally:
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody else."""
        return self.size == 1

    # Failures

    def attempt(self, work: Callable[[], T]) -> T | None:
        """What ``work`` returns; None where it failed, or something failed before, until the others are told.

        A process that failed goes on to the next conversation, or the others would wait for it there. Alone, errors
        are raised as they come.
        """
        if self.is_alone:
            return work()
        if self._failure is not None:
            return None
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - it is raised again, by all processes, at the next conversation
            self._failure = error
            return None

    @contextmanager
    def ahead(self) -> Iterator[bool]:
        """Let the first process do the block while the others wait at its end, as long as it takes.

        Yields whether this is the first. An error in its block is raised in all.
        """
        if not self.is_first:
            yield False
            self._raise_told(self._from_first(None, self._patient))
            return
        try:
            yield True
        except Exception as error:
            if not self.is_alone:
                self._from_first(_portable(error, self.rank), self._patient)
            raise
        self._from_first(None, self._patient)

    def _raise_told(self, error: Exception | None) -> None:
        """Raise what all raise; of our own errors only the first process tells people."""
        if error is not None:
            if isinstance(error, WsiIpsError):
                error.is_told = not self.is_first
            raise error

    # Conversations

    def swap(self, mine: T | None) -> list[T | None]:
        """What each process gives, by rank.

        Raises
        ------
        Exception
            What the first of those that failed failed with, in all of them.
        """
        if self.is_alone:
            return [mine]
        failure, self._failure = self._failure, None
        found: list[Any] = [None] * self.size
        with self._listening():
            told = None if failure is None else _portable(failure, self.rank)
            dist.all_gather_object(found, (told, None if told else mine), group=self._talking)
        failed = [rank for rank, (told, _) in enumerate(found) if told is not None]
        if failed:
            is_mine = failed[0] == self.rank
            self._raise_told(failure if is_mine else found[failed[0]][0])
        return [given for _, given in found]

    def same(self, value: T, what: str) -> T:
        """The value of the first process, which must be that of all.

        Raises
        ------
        TrainingError
            It is not.
        """
        values = self.swap(value)
        others = [rank for rank, other in enumerate(values) if other != values[0]]
        if others:
            self._raise_told(
                TrainingError(
                    f"process {others[0]} of {self.size} has another {what} than the first; recipe, manifest, slides "
                    "and run folder must be the same for all, on a disk that all machines share"
                )
            )
        return cast(T, values[0])

    def from_first(self, value: T) -> T:
        """The value of the first process."""
        return self._from_first(value, self._talking)

    def sum_step(self, parameters: Sequence[nn.Parameter], figures: Tensor, *, stop: bool) -> StepSums:
        """Add up the gradients of all processes, and what must be known with them, in one conversation.

        A parameter that has a gradient nowhere is left without one.

        Parameters
        ----------
        parameters
            The same in all processes; their gradients are replaced by the sums.
        figures
            float32, of the same shape in all processes.
        stop
            Whether this process was asked to stop.

        Raises
        ------
        Exception
            What the first of those that failed failed with, in all of them.
        """
        if self._talking is None:
            return StepSums(figures.detach().cpu(), stop)
        learned = [parameter for parameter in parameters if parameter.requires_grad]
        has = [float(parameter.grad is not None) for parameter in learned]
        told = [float(self._failure is not None), float(stop)]
        small = torch.cat([torch.tensor([*told, *has]), figures.detach().float().cpu().flatten()])
        buffer = self._room(sum(p.numel() for p in learned) + len(small))
        parts = buffer.split([*(p.numel() for p in learned), len(small)])
        for parameter, part in zip(learned, parts, strict=False):
            part.zero_() if parameter.grad is None else part.copy_(parameter.grad.flatten())
        parts[-1].copy_(small)
        with self._listening():
            dist.all_reduce(buffer)
            known = parts[-1].cpu()
        if known[0]:
            self.swap(None)
        for parameter, part, count in zip(learned, parts, known[2 : 2 + len(learned)].tolist(), strict=False):
            parameter.grad = part.view_as(parameter) if count else None
        return StepSums(known[2 + len(learned) :].view_as(figures), bool(known[1]))

    def sum_table(self, table: Tensor) -> Tensor:
        """Sum of tables on the CPU, of the same shape in all processes; failures are told."""
        if self.is_alone:
            return table
        self.swap(None)
        with self._listening():
            dist.all_reduce(table, group=self._talking)
        return table

    def wait(self) -> None:
        """Until all are here."""
        if not self.is_alone:
            self.swap(None)

    def align(self, net: nn.Module) -> None:
        """Bring weights, buffers and the random numbers to come to those of the first process."""
        if self._talking is None:
            return
        with self._listening():
            for tensor in net.state_dict().values():
                whole = tensor.contiguous()
                dist.broadcast(whole, src=0)
                tensor.copy_(whole)
        cuda = self.device.type == "cuda"
        states = (torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if cuda else None)
        cpu, gpu = self.from_first(states)
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, self.device)

    @contextmanager
    def file_of_first(self, path: Path) -> Iterator[Path]:
        """A file as the first process finds it, whatever a shared disk shows the others; a missing one is missing."""
        if self.is_alone:
            yield path
            return
        size = self.from_first(path.stat().st_size if self.is_first and path.is_file() else None)
        with tempfile.TemporaryDirectory() as folder:
            copy = path if self.is_first else Path(folder) / path.name
            if size is not None:
                self._send_file(path, copy, size)
            yield copy

    def _send_file(self, path: Path, copy: Path, size: int) -> None:
        with open(path if self.is_first else copy, "rb" if self.is_first else "wb") as file:
            for start in range(0, size, FILE_PART):
                count = min(FILE_PART, size - start)
                part = torch.empty(count, dtype=torch.uint8)
                if self.is_first:
                    part = torch.frombuffer(bytearray(file.read(count)), dtype=torch.uint8)
                with self._listening():
                    dist.broadcast(part, src=0, group=self._talking)
                if not self.is_first:
                    file.write(part.numpy().tobytes())

    def _from_first(self, value: T, group: dist.ProcessGroup | None) -> T:
        if group is None:
            return value
        given: list[Any] = [value]
        with self._listening():
            dist.broadcast_object_list(given, src=0, group=group)
        return cast(T, given[0])

    def _room(self, count: int) -> Tensor:
        """Memory for the sum, the same in every step."""
        if self._buffer is None or len(self._buffer) < count:
            self._buffer = torch.empty(count, dtype=torch.float32, device=self.device)
        return self._buffer[:count]

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Turn what PyTorch says of lost processes into words."""
        try:
            yield
        except RuntimeError as error:  # dist.DistError is one
            raise TrainingError(
                f"process {self.rank} of {self.size} lost the others: one ended or was killed (then its own message, "
                f"if it had one, stands above), or did not answer for {self._timeout_s:g} s "
                "(`compute.process_timeout_s`). What was saved last is kept; the same command goes on from there. "
                f"PyTorch says: {_first_line(error)}"
            ) from error


def device_of(launch: Launch, name: str) -> torch.device:
    """Where a process computes; ``auto`` is the GPU of its number where the machine has GPUs.

    Raises
    ------
    RecipeError
        More processes than GPUs, or all are told to use the same one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type != "cuda" or not launch.together:
        return device
    if device.index is not None:
        if launch.size > 1:
            raise RecipeError(
                f"key `compute.device`: {name} for each of {launch.size} processes; with torchrun leave `auto`, each "
                "takes the GPU of its number"
            )
        return device
    if launch.local_rank >= torch.cuda.device_count():
        raise RecipeError(
            f"process {launch.local_rank} of this machine has no GPU of its own, there are "
            f"{torch.cuda.device_count()}; start as many with `torchrun --nproc-per-node`, or set `compute.device: cpu`"
        )
    return torch.device("cuda", launch.local_rank)


def _portable(error: Exception, rank: int) -> Exception:
    """The error itself where it is one of ours and can travel, else its text."""
    if isinstance(error, WsiIpsError):
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        except Exception:  # noqa: BLE001 - whatever it is made of
            return TrainingError(str(error))
        return error
    return TrainingError(
        f"process {rank} failed: {type(error).__name__}: {_first_line(error)}; its own message says more"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
