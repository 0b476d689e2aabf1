"""The one place where any exception is caught: around the work on one slide."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from wsi_ips.errors import WsiIpsError

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Why the work on a slide failed; plain text, so that it travels between processes.

    Attributes
    ----------
    reason
        One line; of our own errors the message, which says what to do.
    traceback
        For the file that is kept beside.
    """

    reason: str
    traceback: str


def fenced(work: Callable[[], T]) -> T | Failure:
    """What ``work`` returns, or why it failed: one bad slide never stops a cohort."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001
        return failure_of(error)


def failure_of(error: Exception) -> Failure:
    """An exception as plain text."""
    text = str(error) if isinstance(error, WsiIpsError) else f"{type(error).__name__}: {error}"
    return Failure(" ".join(text.split()), "".join(traceback.format_exception(error)))
