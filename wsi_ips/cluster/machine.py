"""Cores and memory that this process may use, within the limits of its container, and how ``torchrun`` started it."""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MIN_WORKER_GB = 1.0  # memory that a slide without a pyramid may need; it limits the number of workers
MEMORY_SHARE = 0.8  # for workers; the rest is for this process, the system and its file cache
CGROUP = Path("/sys/fs/cgroup")
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # environment variables that it sets


def available_cores() -> int:
    """Return the number of cores, within the CPU affinity and the quota of the container."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = _numbers("cpu.max") or _numbers("cpu/cpu.cfs_quota_us") + _numbers("cpu/cpu.cfs_period_us")
    return min(cores, math.ceil(quota[0] / quota[1])) if len(quota) == 2 and quota[0] > 0 else cores


def installed_memory_bytes() -> int:
    """Return the memory of the machine in bytes."""
    return PAGE_BYTES * os.sysconf("SC_PHYS_PAGES")


def free_memory_bytes() -> int:
    """Return the available memory in bytes; the total where the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return installed_memory_bytes()
    known = dict(line.split(":") for line in lines)
    return int(known["MemAvailable"].split()[0]) * 1024


def memory_bytes() -> int:
    """Return the memory in bytes, within the limits of the container and of ``ulimit``."""
    limits = [installed_memory_bytes()]
    limits += _numbers("memory.max") or _numbers("memory/memory.limit_in_bytes")
    ulimit = resource.getrlimit(resource.RLIMIT_RSS)[0]
    return min(limits + ([ulimit] if ulimit != resource.RLIM_INFINITY else []))


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, MB (10⁶ bytes); 0 where it is gone."""
    try:
        if sys.platform == "linux":
            pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
            return int(pages) * PAGE_BYTES / 1e6
        command = ["/bin/ps", "-o", "rss=", "-p", str(pid)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024 / 1e6  # noqa: S603
    except (OSError, IndexError, ValueError, subprocess.SubprocessError):
        return 0.0


def local_workers(wanted: int | None, worker_memory_gb: float | None) -> tuple[int, float]:
    """Return the number of workers for this machine and the memory of each, GB (10⁹ bytes).

    By default there is one per core, or fewer where the memory is too small, and each has an equal share of it.
    """
    whole_gb = MEMORY_SHARE * memory_bytes() / 1e9
    workers = wanted or max(1, min(available_cores(), int(whole_gb / (worker_memory_gb or MIN_WORKER_GB))))
    return workers, worker_memory_gb or whole_gb / workers


def _numbers(name: str) -> list[int]:
    """Return the numbers in a file of the control group; an empty list where it is missing or sets no limit."""
    try:
        return [int(word) for word in (CGROUP / name).read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return []


@dataclass(frozen=True)
class Launch:
    """One of the processes that ``torchrun`` started together."""

    rank: int = 0  # its number; process 0 is the first, which alone writes files and reports
    size: int = 1  # number of processes, on all machines
    local_rank: int = 0  # its number on this machine
    together: bool = False  # torchrun started it, perhaps as the only one

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the variables of ``torchrun``; where one is missing, the process is alone."""
        if not set(TORCHRUN) <= environment.keys():
            return cls()
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        return cls(rank, size, int(environment.get("LOCAL_RANK", "0")), together=True)

    @staticmethod
    def forget(environment: MutableMapping[str, str] = os.environ) -> None:
        """Remove the variables, so that this process and those it starts are alone."""
        for name in TORCHRUN:
            environment.pop(name, None)

    @property
    def is_first(self) -> bool:
        """Whether it writes files and reports."""
        return self.rank == 0
