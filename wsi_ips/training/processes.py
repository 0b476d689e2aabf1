"""Several processes train one network together, as ``torchrun`` starts them, on top of ``torch.distributed``.

``DistributedDataParallel`` does not fit (DECISIONS D69): it averages over equal numbers of samples. Here a sample
is a slide of ten or of 200 000 tiles, most time goes into a scan without gradient, and a step may have fewer slides
than processes. What happens in a step:

1. **Divide** (:func:`divide`). The slides of a step follow from the seed, the scanners from their numbers of tiles.
   Every process computes the same division, so nothing is sent. A few slides may be cut between processes.
2. **Scan.** Only where a slide was cut, its scanners exchange logits (not pixels), and its owner, the one process that
   learns from it, selects from all of them (:func:`join_shared`).
3. **Learn.** Each process divides the loss of its own slides by the labels of the whole step, so gradients add up to
   those of one process. Every process draws dropout for all slides of the step, so it does not depend on the division.
4. **Sum** (:meth:`Processes.sum_step`). One all-reduce of one flat buffer: all gradients, then a short tail with the
   figures of the step, whether a process failed, and whether one was asked to stop.

The first process (rank 0) alone writes files and reports. A process that fails runs on to the next exchange, where all
raise the same error. Gradients go by NCCL where they are on GPUs; everything else goes by gloo.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_ips.cluster.machine import Launch
from wsi_ips.errors import RecipeError, TrainingError, WsiIpsError
from wsi_ips.model.selection import Selection, merge
from wsi_ips.scanning import choose_device
from wsi_ips.tiles.stream import SlideTiles, read_tiles

T = TypeVar("T")

TIMEOUT_S = 3600.0  # a process gives up when the others have not answered for this long
STARTED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"  # environment variable that it sets
LOOK_FOR_PARENT_S = 1.0
TILING_TIMEOUT = timedelta(days=30)  # while the first tiles the slides; a lost connection is noticed at once
UNEVEN = 1.1  # slides stay whole while the busiest process has at most this many times the mean number of tiles


@dataclass(frozen=True)
class Piece:
    """Some tiles of one slide of a step."""

    slide: int
    start: int  # counted among the tiles to scan
    stop: int  # half-open

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Division:
    """Division of the work of one step."""

    pieces: tuple[tuple[Piece, ...], ...]  # that each process scans
    owners: tuple[int, ...]  # of each slide, the process that learns from it

    def owned(self, rank: int) -> list[int]:
        """Return the slides that a process learns from, ascending."""
        return [slide for slide, owner in enumerate(self.owners) if owner == rank]

    @property
    def shared(self) -> list[int]:
        """Slides that several processes scan, ascending."""
        scanners = Counter(piece.slide for some in self.pieces for piece in some)
        return [slide for slide in range(len(self.owners)) if scanners[slide] > 1]


def divide(tiles: Sequence[int], size: int, *, whole: bool = False) -> Division:
    """Divide slides, given the tiles to scan of each (at least 1), so that ``size`` processes scan about as many.

    Whole slides, the largest first, each go to the process with the least so far. Where that leaves one process with
    more than :data:`UNEVEN` times the mean (and slides need not stay ``whole``), they are laid in a row and cut into
    equal shares instead (McNaughton's rule, 1959): at most ``size - 1`` slides are cut.
    """
    pieces: list[list[Piece]] = [[] for _ in range(size)]
    load = [0] * size
    for slide in sorted(range(len(tiles)), key=lambda s: (-tiles[s], s)):
        rank = load.index(min(load))
        pieces[rank].append(Piece(slide, 0, tiles[slide]))
        load[rank] += tiles[slide]
    if not whole and max(load) > UNEVEN * sum(tiles) / size:
        pieces = _equal_shares(tiles, size)
    pieces = [sorted(some, key=lambda piece: piece.slide) for some in pieces]
    return Division(tuple(map(tuple, pieces)), _owners(pieces, len(tiles)))


def _equal_shares(tiles: Sequence[int], size: int) -> list[list[Piece]]:
    ends = np.cumsum([0, *tiles])
    cuts = [round(ends[-1] * rank / size) for rank in range(size + 1)]
    pieces: list[list[Piece]] = []
    for first, last in pairwise(cuts):
        bounds = [(max(first, a), min(last, b), a) for a, b in pairwise(ends)]
        pieces.append([Piece(s, int(a - at), int(b - at)) for s, (a, b, at) in enumerate(bounds) if a < b])
    return pieces


def _owners(pieces: Sequence[Sequence[Piece]], slides: int) -> tuple[int, ...]:
    """Give each slide to one of its scanners; a cut slide goes to the scanner with the fewest slides so far."""
    scanners = [[r for r, some in enumerate(pieces) if any(p.slide == s for p in some)] for s in range(slides)]
    owned = [0] * len(pieces)
    owners = [-1] * slides
    for slide in sorted(range(slides), key=lambda s: (len(scanners[s]), s)):
        owners[slide] = min(scanners[slide], key=lambda rank: (owned[rank], rank))
        owned[owners[slide]] += 1
    return tuple(owners)


class Processes:
    """The processes of one training, ``size`` in number, as this one (``rank``, ``device``) sees them."""

    def __init__(self, device: torch.device, launch: Launch | None = None, timeout_s: float = TIMEOUT_S) -> None:
        launch = launch or Launch()
        self.rank, self.size, self.device = launch.rank, launch.size, device
        self.is_first, self.is_alone = self.rank == 0, self.size == 1  # the first writes files and reports
        self._timeout_s = timeout_s
        self._failure: Exception | None = None  # of this process, not yet known to the others
        self._buffer: Tensor | None = None
        self._group: dist.ProcessGroup | None = None
        self._patient_group: dist.ProcessGroup | None = None

    @classmethod
    @contextmanager
    def joined(cls, launch: Launch, *, device: str = "auto", timeout_s: float = TIMEOUT_S) -> Iterator[Self]:
        """Connect to the other processes for a ``with`` block; a process that runs alone connects to nothing."""
        chosen = device_of(launch, device)
        processes = cls(chosen, launch, timeout_s)
        if not launch.together:
            yield processes
            return
        if STARTED_BY_TORCHRUN in os.environ:
            threading.Thread(target=_end_with_parent, args=(os.getppid(),), name="wsi-ips-parent", daemon=True).start()
        wait = timedelta(seconds=timeout_s)
        with processes._translated_errors():
            if chosen.type == "cuda":
                torch.cuda.set_device(chosen)
            backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
            dist.init_process_group(backend, rank=launch.rank, world_size=launch.size, timeout=wait)
            processes._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=wait))
            processes._patient_group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=TILING_TIMEOUT))
        try:
            yield processes
        finally:
            dist.destroy_process_group()

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Return the result of ``work``; None where this process failed, now or before, until all raise its error."""
        if self.is_alone:
            return work()
        try:
            return work() if self._failure is None else None
        except Exception as error:  # noqa: BLE001 - all processes raise it at the next exchange
            self._failure = error
            return None

    @contextmanager
    def ahead(self) -> Iterator[bool]:
        """Let the first process run the block while the others wait at its end; yield whether this is the first."""
        if not self.is_first:
            yield False
            self._raise_everywhere(self.from_first(None, patiently=True))
            return
        try:
            yield True
        except Exception as error:
            if not self.is_alone:
                self.from_first(_portable(error, self.rank), patiently=True)
            raise
        self.from_first(None, patiently=True)

    def gather(self, mine: T | None = None) -> list[T | None]:
        """Return the value of each process, by rank, once all have it; if some failed, all raise the first error."""
        if self.is_alone:
            return [mine]
        failure, self._failure = self._failure, None
        found: list[Any] = [None] * self.size
        with self._translated_errors():
            sent = None if failure is None else _portable(failure, self.rank)
            dist.all_gather_object(found, (sent, None if sent else mine), group=self._group)
        failed = next((rank for rank, (error, _) in enumerate(found) if error is not None), None)
        if failed is not None:
            self._raise_everywhere(failure if failed == self.rank else found[failed][0])
        return [given for _, given in found]

    def same(self, value: T, what: str) -> T:
        """Return the value if all processes have the same, else raise a :class:`TrainingError` that says ``what``."""
        values = self.gather(value)
        others = [rank for rank, other in enumerate(values) if other != values[0]]
        if others:
            self._raise_everywhere(
                TrainingError(
                    f"process {others[0]} of {self.size} has another {what} than the first; recipe, manifest, slides "
                    "and run folder must be the same for all, on a disk that all machines share"
                )
            )
        return value

    def from_first(self, value: T, *, patiently: bool = False) -> T:
        """Return the value of the first process; ``patiently`` waits for it as long as it takes."""
        group = self._patient_group if patiently else self._group
        if group is None:
            return value
        given: list[Any] = [value]
        with self._translated_errors():
            dist.broadcast_object_list(given, src=0, group=group)
        return cast(T, given[0])

    def tensors_from_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the first process, on the CPU; those of the others are ignored."""
        if self._group is None:
            return dict(tensors)
        layout = self.from_first({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        received = {}
        for name, (shape, dtype) in layout.items():
            tensor = tensors[name].detach().cpu().contiguous() if self.is_first else torch.empty(shape, dtype=dtype)
            with self._translated_errors():
                dist.broadcast(tensor.flatten().view(torch.uint8), src=0, group=self._group)  # a view: same memory
            received[name] = tensor
        return received

    def align(self, net: nn.Module) -> None:
        """Copy weights, buffers and the state of random numbers from the first process to all."""
        if self._group is None:
            return
        state, cuda = net.state_dict(), self.device.type == "cuda"
        random = {"cpu random": torch.get_rng_state()}
        random |= {"cuda random": torch.cuda.get_rng_state(self.device)} if cuda else {}
        received = self.tensors_from_first(state | random)
        for name, tensor in state.items():
            tensor.copy_(received[name])
        torch.set_rng_state(received["cpu random"])
        if cuda:
            torch.cuda.set_rng_state(received["cuda random"], self.device)

    def sum_step(self, parameters: Sequence[nn.Parameter], figures: Tensor, *, stop: bool) -> tuple[Tensor, bool]:
        """Sum gradients over all processes, in one exchange; a parameter with a gradient in none is left without.

        Returns the sum of the figures (float32), on the CPU, and whether any process was asked to ``stop``.
        """
        if self._group is None:
            return figures.detach().cpu(), stop
        learned = [parameter for parameter in parameters if parameter.requires_grad]
        # The buffer: [gradient of each parameter ...][failed, stop, has gradient of each parameter ..., figures ...]
        signals = [self._failure is not None, stop, *(parameter.grad is not None for parameter in learned)]
        tail = torch.cat([torch.tensor(signals).float(), figures.detach().float().cpu().flatten()])
        sizes = [*(parameter.numel() for parameter in learned), len(tail)]
        if self._buffer is None or len(self._buffer) < sum(sizes):
            self._buffer = torch.empty(sum(sizes), dtype=torch.float32, device=self.device)
        *parts, last = self._buffer[: sum(sizes)].split(sizes)
        for parameter, part in zip(learned, parts, strict=True):
            part.zero_() if parameter.grad is None else part.copy_(parameter.grad.flatten())
        last.copy_(tail)
        with self._translated_errors():
            dist.all_reduce(self._buffer[: sum(sizes)])
            failed, stops, holders, summed = last.cpu().split([1, 1, len(learned), figures.numel()])
        if failed:
            self.gather()  # raises the error in all processes
        for parameter, part, count in zip(learned, parts, holders.tolist(), strict=True):
            parameter.grad = part.view_as(parameter) if count else None
        return summed.view_as(figures), bool(stops)

    def _raise_everywhere(self, error: Exception | None) -> None:
        if error is not None:
            if isinstance(error, WsiIpsError):
                error.is_told = not self.is_first  # only the first one prints it
            raise error

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Translate torch.distributed failures into a :class:`TrainingError`."""
        try:
            yield
        except RuntimeError as error:  # dist.DistError is one
            first, *_ = str(error).splitlines() or [""]
            raise TrainingError(
                f"process {self.rank} of {self.size} lost the others: one ended or was killed (its own message, if it "
                f"had one, is above), or did not answer for {self._timeout_s:g} s. What was saved last is kept; "
                f"the same command resumes from there. PyTorch says: {first}"
            ) from error


def device_of(launch: Launch, name: str) -> torch.device:
    """Return the device of a process; ``auto`` is the GPU with its number where the machine has GPUs."""
    device = choose_device(name)
    if device.type != "cuda" or not launch.together or (device.index is not None and launch.size == 1):
        return device
    if device.index is not None:
        raise RecipeError(
            f"key `compute.device`: {name} for each of {launch.size} processes; with torchrun leave `auto`, each "
            "takes the GPU of its number"
        )
    if launch.local_rank >= torch.cuda.device_count():
        raise RecipeError(
            f"process {launch.local_rank} of this machine has no GPU of its own; there are "
            f"{torch.cuda.device_count()}; start as many with `torchrun --nproc-per-node`, or set `compute.device: cpu`"
        )
    return torch.device("cuda", launch.local_rank)


def piece_requests(pieces: Sequence[Piece], requests: Sequence[SlideTiles]) -> list[SlideTiles]:
    """Return the tiles of each piece, ready to stream at slots 0, 1, ..., from the slides of the whole step."""
    wanted = [requests[p.slide].wanted[p.start : p.stop] for p in pieces]
    return [requests[p.slide].at_slot(slot).only(wanted[slot]) for slot, p in enumerate(pieces)]


def join_shared(
    processes: Processes,
    division: Division,
    found: Mapping[Piece, Selection],
    requests: Sequence[SlideTiles],
    *,
    memory_size: int,
) -> dict[int, Selection]:
    """Return, by slide, the selection from the own slides that were cut, given what this process ``found``.

    Logits are sent, pixels are not: the owner reads again the tiles that it did not scan itself. All processes must
    call this. ``requests`` are all slides of the step with the tiles to scan.
    """
    if not division.shared:
        return {}
    own = [(p.slide, selection) for p, selection in found.items() if p.slide in division.shared]
    sent = processes.gather(
        [(n, replace(part, tiles=part.tiles[:0], pixels=part.pixels[:0], score=part.score[:0])) for n, part in own]
    )
    others = [pair for rank, some in enumerate(sent) if rank != processes.rank for pair in some or ()]
    joined = {}
    for slide in division.shared:
        if division.owners[slide] == processes.rank:

            def read_again(tiles: NDArray[np.int64], request: SlideTiles = requests[slide]) -> NDArray[np.uint8]:
                return read_tiles(request.only(tiles.astype(np.int32)))

            shards = [part for number, part in [*own, *others] if number == slide]
            joined[slide] = merge(shards, memory_size=memory_size, read_again=read_again)
    return joined


def _end_with_parent(parent: int) -> None:
    """End this process when `torchrun` was killed, which then could not end it; what was saved last is kept."""
    while os.getppid() == parent:
        time.sleep(LOOK_FOR_PARENT_S)
    os._exit(1)


def _portable(error: Exception, rank: int) -> Exception:
    """Return the error itself if it is a wsi-ips error and can be pickled, else one with its text."""
    if not isinstance(error, WsiIpsError):
        return TrainingError(f"process {rank} failed: {type(error).__name__}: {error}; its own message says more")
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    except Exception:  # noqa: BLE001 - its attributes may be anything
        return TrainingError(str(error))
    return error
