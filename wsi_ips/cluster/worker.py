"""What runs on a Dask worker: it lends a job one of its processes.

Processes stay between jobs, for starting one takes a second. A thread of the worker has one at a time.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

from wsi_ips.cluster.process import Job, JobProcess, JobResult, Limits

_lock = threading.Lock()
_all: set[JobProcess] = set()
_idle: list[JobProcess] = []


def work(job: Job, limits: Limits) -> JobResult:
    """Have a job done in a process beneath this worker."""
    if limits.memory_mb is None:
        limits = replace(limits, memory_mb=_share_of_worker_mb())
    process = _take()
    try:
        return process.run(job, limits)
    finally:
        _give_back(process)


def close_processes(*, idle_only: bool = False) -> None:
    """End the processes beneath this worker."""
    with _lock:
        ending = list(_idle if idle_only else _all)
        _idle.clear()
        if idle_only:
            _all.difference_update(ending)
    for process in ending:
        if idle_only:
            process.close()
        else:
            process.kill()  # its thread releases the rest


def _take() -> JobProcess:
    with _lock:
        while _idle:
            process = _idle.pop()
            if process.alive:
                return process
            _all.discard(process)
            process.close()
        taken = {other.number for other in _all}
        process = JobProcess(next(number for number in itertools.count() if number not in taken))
        _all.add(process)
        return process


def _give_back(process: JobProcess) -> None:
    with _lock:
        if process.alive:
            _idle.append(process)
        else:
            _all.discard(process)
            process.close()


def _share_of_worker_mb() -> float | None:
    """Memory per thread of the Dask worker, where it has a limit."""
    from distributed import get_worker

    worker = get_worker()
    limit = worker.memory_manager.memory_limit
    return limit / worker.state.nthreads / 1e6 if limit else None
