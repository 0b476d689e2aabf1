"""Progress of stages: what a listener gets, and the listener that ignores it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives the progress of stages, and short messages: the command line draws bars."""

    def stage(self, title: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Open a progress bar; the block gets a function to call with the number of units done since the last call."""

    def note(self, text: str) -> None:
        """Print one line."""


class Silent:
    """Ignores all progress."""

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Draw nothing."""
        yield lambda _: None

    def note(self, text: str) -> None:
        """Print nothing."""
