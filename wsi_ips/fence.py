"""Keep the failure of one slide, or a file that does not answer, from stopping the work on the others."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from wsi_ips.errors import WsiIpsError

T = TypeVar("T")
V = TypeVar("V")

THREADS = 8
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Failure:
    """Why the work on a slide failed; plain text that can be sent between processes."""

    reason: str  # one line; the message of our own errors, which says what to do
    traceback: str  # full text for the log file


def fenced(work: Callable[[], T]) -> T | Failure:
    """Return the result of ``work``, or why it failed: one bad slide never stops a cohort."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        return failure_of(error)


def failure_of(error: Exception) -> Failure:
    """Return an exception as plain text."""
    text = str(error) if isinstance(error, WsiIpsError) else f"{type(error).__name__}: {error}"
    return Failure(" ".join(text.split()), "".join(traceback.format_exception(error)))


def survey(
    items: Sequence[T], look: Callable[[T], V], *, otherwise: V, patience_s: float = PATIENCE_S, threads: int = THREADS
) -> list[V]:
    """Call ``look`` on each item in threads and return the answers in order.

    ``look`` must not raise, but it may hang, as reading from a dead mount does: after ``patience_s`` without any
    answer its thread is abandoned, and ``otherwise`` is the answer for it and for items that were never reached.
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
