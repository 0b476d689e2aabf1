"""Examine many files in parallel without waiting forever for one that hangs."""

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
    """Call ``look`` on each item in threads and return the answers in order.

    Parameters
    ----------
    items
        What to look at.
    look
        Must not raise. It may hang, as reading from a dead mount does; its thread is then abandoned.
    otherwise
        Answer for items that hang, and for those that were never reached because of them.
    patience_s
        Give up after this many seconds without any answer.
    threads
        Items looked at in parallel.
    """
    found: dict[int, V] = {}
    waiting, answered = queue.SimpleQueue[int](), queue.SimpleQueue[int]()
    for number in range(len(items)):
        waiting.put(number)

    def work() -> None:
        while True:
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            found[number] = look(items[number])
            answered.put(number)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, daemon=True).start()
    last = time.monotonic()
    for _ in items:
        try:
            answered.get(timeout=max(0.0, last + patience_s - time.monotonic()))
        except queue.Empty:
            break
        last = time.monotonic()
    return [found.get(number, otherwise) for number in range(len(items))]
