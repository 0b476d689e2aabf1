"""Whether this process is one of several that ``torchrun`` started; asked without loading torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Self

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` sets and :class:`Launch` needs."""


@dataclass(frozen=True)
class Launch:
    """One process among those that work on one training together.

    Attributes
    ----------
    rank
        Its number, from 0; process 0 is the first, which alone writes files and talks.
    size
        How many there are, on all machines.
    local_rank
        Its number on this machine, from 0.
    together
        Whether they were started to find each other; of one process alone too, where ``torchrun`` started it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    together: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """As the variables of ``torchrun`` say; all of them must be there, or the process is alone."""
        if not set(VARIABLES) <= environment.keys():
            return cls()
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        return cls(rank, size, int(environment.get("LOCAL_RANK", "0")), together=True)

    @staticmethod
    def forget(environment: MutableMapping[str, str] = os.environ) -> None:
        """Be alone from here on, and whatever this process starts."""
        for name in VARIABLES:
            environment.pop(name, None)

    @property
    def is_first(self) -> bool:
        """Whether it writes files and talks."""
        return self.rank == 0
