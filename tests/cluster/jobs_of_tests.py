"""Jobs that end in every way a slide can end."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

from wsi_ips.errors import UnsupportedSlideError


def double(number: int) -> tuple[int, int]:
    """A result, and who made it."""
    return 2 * number, os.getpid()


def refuse(_: Any) -> None:
    raise UnsupportedSlideError("slide s: no reader opens it; copy it again")


def crash(_: Any) -> None:
    ctypes.string_at(0)


def kill_itself(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_itself_once(flag: str) -> str:
    """Dies of the first attempt only."""
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second time"


def open_fifo(path: str) -> None:
    """Hangs as a file on a dead mount does: in ``open``, for ever."""
    Path(path).read_bytes()


def stop_itself(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def eat_memory(_: Any) -> None:
    eaten = []
    while True:
        eaten.append(b"x" * 20_000_000)
        time.sleep(0.005)


def ask_for_too_much(_: Any) -> None:
    bytearray(1 << 60)


def leave(_: Any) -> None:
    os._exit(7)
