"""How stages tell people how far they are; the command line draws bars, a script may stay silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives the progress of stages and short notes."""

    def stage(self, title: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Open a bar; the result is called with the number of units finished since the last call."""
        ...

    def note(self, text: str) -> None:
        """Say one line."""
        ...


class Silent:
    """Progress that nobody watches."""

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Open a bar that is not drawn."""
        yield lambda _: None

    def note(self, text: str) -> None:
        """Drop the line."""
