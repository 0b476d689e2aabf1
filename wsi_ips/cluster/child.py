"""A process that does one job after another, seen from inside: ``python -m wsi_ips.cluster.child DESCRIPTOR``."""

from __future__ import annotations

import faulthandler
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from wsi_ips.cluster.process import Job, JobResult, Usage
from wsi_ips.fence import Failure, fenced
from wsi_ips.provenance import peak_rss_mb


def do_job(job: Job, on_begin: Callable[[], object] = bool) -> JobResult:
    """Do a job in this process; ``on_begin`` is called when all that it needs is imported."""
    function = fenced(partial(_imported, job))
    on_begin()
    before = _clocks()
    result = function if isinstance(function, Failure) else fenced(partial(function, job.argument))
    wall_s, cpu_s, queued_s = (after - start for after, start in zip(_clocks(), before, strict=True))
    usage = Usage(wall_s, cpu_s, queued_s, peak_rss_mb())
    if isinstance(result, Failure):
        memory = "MemoryError" in result.reason.partition(":")[0]
        return JobResult("memory" if memory else "error", failure=result, usage=usage)
    return JobResult("done", value=result, usage=usage)


def main(descriptor: int) -> None:
    """Serve jobs until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    connection = Connection(descriptor)
    jobs = queue.SimpleQueue[Job]()
    threading.Thread(target=_receive, args=(connection, jobs), daemon=True).start()
    connection.send("ready")
    while True:
        connection.send(do_job(jobs.get(), partial(connection.send, "began")))


def _receive(connection: Connection, jobs: queue.SimpleQueue[Job]) -> None:
    """Hand on jobs; when the other end is gone, so is this process, whatever it is doing."""
    try:
        while True:
            jobs.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _imported(job: Job) -> Callable[[Any], object]:
    module, _, name = job.function.partition(":")
    function: Callable[[Any], object] = getattr(import_module(module), name)
    return function


def _clocks() -> tuple[float, float, float]:
    """Seconds so far: of the clock, of CPU, and of waiting for a core."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.monotonic(), used.ru_utime + used.ru_stime, _queued_s()


def _queued_s() -> float:
    try:
        return int(Path("/proc/self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


if __name__ == "__main__":
    main(int(sys.argv[1]))
