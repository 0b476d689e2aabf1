"""Tell whether ``torchrun`` started this process together with others; loads no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Self

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that ``torchrun`` sets."""


@dataclass(frozen=True)
class Launch:
    """One of the processes that train together."""

    rank: int = 0  # its number; process 0 is the first, which alone writes files and reports
    size: int = 1  # number of processes, on all machines
    local_rank: int = 0  # its number on this machine
    together: bool = False  # torchrun started it, perhaps as the only one

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the variables of ``torchrun``; where one is missing, the process is alone."""
        if not set(VARIABLES) <= environment.keys():
            return cls()
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        return cls(rank, size, int(environment.get("LOCAL_RANK", "0")), together=True)

    @staticmethod
    def forget(environment: MutableMapping[str, str] = os.environ) -> None:
        """Remove the variables, so that this process and those it starts are alone."""
        for name in VARIABLES:
            environment.pop(name, None)

    @property
    def is_first(self) -> bool:
        """Whether it writes files and reports."""
        return self.rank == 0
