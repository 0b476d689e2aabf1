"""The child process that runs one job after another: ``python -m wsi_ips.cluster.child DESCRIPTOR``."""

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
from typing import Any

from wsi_ips.cluster.process import Job, JobResult, Usage
from wsi_ips.fence import Failure, fenced
from wsi_ips.provenance import peak_rss_mb


def do_job(job: Job, on_begin: Callable[[], object] = bool) -> JobResult:
    """Run a job in this process and return its result; call ``on_begin`` after the imports."""
    function = fenced(partial(_imported, job))
    on_begin()
    before = _clocks()
    result = function if isinstance(function, Failure) else fenced(partial(function, job.argument))
    wall_s, cpu_s = (after - start for after, start in zip(_clocks(), before, strict=True))
    usage = Usage(wall_s, cpu_s, peak_rss_mb())
    if isinstance(result, Failure):
        memory = "MemoryError" in result.reason.partition(":")[0]
        return JobResult("memory" if memory else "error", failure=result, usage=usage)
    return JobResult("done", value=result, usage=usage)


def main(descriptor: int) -> None:
    """Run jobs until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    connection = Connection(descriptor)
    jobs = queue.SimpleQueue[Job]()
    threading.Thread(target=_receive, args=(connection, jobs), daemon=True).start()
    connection.send("ready")
    while True:
        connection.send(do_job(jobs.get(), partial(connection.send, "began")))


def _receive(connection: Connection, jobs: queue.SimpleQueue[Job]) -> None:
    """Receive jobs; exit at once when the parent is gone, even in the middle of a job."""
    try:
        while True:
            jobs.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _imported(job: Job) -> Callable[[Any], object]:
    module, _, name = job.function.partition(":")
    function: Callable[[Any], object] = getattr(import_module(module), name)
    return function


def _clocks() -> tuple[float, float]:
    """Return elapsed and CPU seconds so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.monotonic(), used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(int(sys.argv[1]))
