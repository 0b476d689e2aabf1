"""Catch any exception of the work on one slide and turn it into a reason, so that the other slides continue."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from wsi_ips.errors import WsiIpsError

T = TypeVar("T")


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
