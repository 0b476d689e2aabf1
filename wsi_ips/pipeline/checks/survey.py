"""Look at many files at a time, without being held up by one that does not answer."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
V = TypeVar("V")

THREADS = 8
PATIENCE_S = 30.0


def survey(
    items: Sequence[T], look: Callable[[T], V], *, otherwise: V, patience_s: float = PATIENCE_S, threads: int = THREADS
) -> list[V]:
    """What ``look`` says of each item, in order; ``otherwise`` for those that do not answer.

    Parameters
    ----------
    items
        What to look at.
    look
        Must not raise. May hang, as reading from a dead mount does: its thread is then left behind.
    otherwise
        Said of those that hang, and of those that were not come to because of them.
    patience_s
        It is over when so many seconds pass without an answer.
    threads
        Looks at a time.
    """
    found: dict[int, V] = {}
    waiting, answered = queue.SimpleQueue[int](), queue.SimpleQueue[int]()
    for number in range(len(items)):
        waiting.put(number)

    def looking() -> None:
        while True:
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            found[number] = look(items[number])
            answered.put(number)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=looking, daemon=True).start()
    last = time.monotonic()
    for _ in items:
        try:
            answered.get(timeout=max(0.0, last + patience_s - time.monotonic()))
        except queue.Empty:
            break
        last = time.monotonic()
    return [found.get(number, otherwise) for number in range(len(items))]
