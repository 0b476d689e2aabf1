"""Run a list of jobs in order, several at a time, and retry those whose process died.

Section ``compute`` says where: on the cores of this machine, on a Dask cluster, or in this process.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

from wsi_ips.cluster.machine import local_workers
from wsi_ips.cluster.process import Job, JobProcess, JobResult, Limits, do_job
from wsi_ips.config import ComputeSection
from wsi_ips.errors import Failure, StorageError

TICK_S = 1.0
ATTEMPTS = 2  # a job whose process dies is retried: another program may have been the cause
TIMEOUT_TILES = 1000  # where a network processes the tiles, `compute.slide_timeout_s` is the time for this many


@dataclass(frozen=True)
class JobOutcome:
    """Final result of a job."""

    job: Job
    result: JobResult  # result of its last attempt
    attempts: int = 1  # number of attempts

    @property
    def failure(self) -> Failure | None:
        """Reason for the failure; if its process died, with the slide and the number of attempts."""
        failure = self.result.failure
        if failure is None or self.result.ending == "error":
            return failure
        often = f" ({self.attempts} attempts)" if self.attempts > 1 else ""
        reason = f"slide {self.job.name}: {failure.reason}"
        return Failure(reason + often, f"{reason}\n\n{failure.traceback}")


class JobPool:
    """Submits jobs, and hands out their results as they arrive."""

    def __init__(
        self, room: Callable[[], int], submit: Callable[[Job], Any], result_of: Callable[[Any, Job], JobResult]
    ) -> None:
        self.room = room  # how many jobs to submit at a time
        self._submit = submit  # returns a future; `result_of` returns its result when it is done
        self._result_of = result_of
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: dict[int, tuple[Job, Any]] = {}

    def add(self, job: Job) -> None:
        """Submit a job."""
        future = self._submit(job)
        self._running[id(future)] = job, future
        future.add_done_callback(self._ended.put)

    def next_ended(self) -> tuple[Job, JobResult] | None:
        """Wait for a job to end and return it with its result; None when none ended within a second."""
        try:
            future = self._ended.get(timeout=TICK_S)
        except queue.Empty:
            return None
        job, _ = self._running.pop(id(future))
        return job, self._result_of(future, job)

    def running(self) -> list[Any]:
        """Return the futures that have not ended."""
        return [future for _, future in self._running.values()]


@contextmanager
def spread(compute: ComputeSection, jobs: Sequence[Job]) -> Iterator[Iterator[JobOutcome | None]]:
    """Start jobs and yield their outcomes as :func:`run_jobs` does; leaving the block stops unfinished jobs."""
    if compute.scheduler is not None:
        from wsi_ips.cluster.dask_pool import open_pool

        memory_mb = None if compute.worker_memory_gb is None else compute.worker_memory_gb * 1000
        with open_pool(compute.scheduler, compute.workers, Limits(compute.slide_timeout_s, memory_mb)) as pool:
            yield run_jobs(pool, jobs)
    elif compute.workers == 0:  # in this process, without protection from crashes and hangs
        yield (JobOutcome(job, _stored(do_job(job))) for job in jobs)
    else:
        workers, memory_gb = local_workers(compute.workers, compute.worker_memory_gb)
        with _local_pool(min(workers, len(jobs)), Limits(compute.slide_timeout_s, memory_gb * 1000)) as local:
            yield run_jobs(local, jobs)


def timeout_s(compute: ComputeSection, tiles: int) -> float:
    """Return the time limit in seconds for the tiles of a slide that go through a network."""
    return compute.slide_timeout_s * max(1, tiles / TIMEOUT_TILES)


def run_jobs(pool: JobPool, jobs: Sequence[Job]) -> Iterator[JobOutcome | None]:
    """Run jobs with different names in a pool; yield each as it ends, and None at least once a second.

    Jobs start in order. A job whose process died or was stopped is retried after the others. An error that
    the job raised is final: it would happen again.
    """
    waiting, tried = deque(jobs), Counter[str]()
    while waiting or pool.running():
        while waiting and len(pool.running()) < pool.room():
            job = waiting.popleft()
            tried[job.name] += 1
            pool.add(job)
        ended = pool.next_ended()
        if ended is None:
            yield None
            continue
        job, result = ended
        _stored(result)
        if result.ending not in ("done", "error") and tried[job.name] < ATTEMPTS:
            waiting.append(job)
        else:
            yield JobOutcome(job, result, tried[job.name])


def _stored(result: JobResult) -> JobResult:
    """Return a result; raise StorageError where the disk was full: no other job can be stored either."""
    if result.ending == "storage" and result.failure:
        raise StorageError(result.failure.reason)
    return result


class JobProcesses:
    """Processes that are kept between jobs, because starting one takes a second. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[JobProcess] = []
        self._busy: set[JobProcess] = set()

    def run(self, job: Job, limits: Limits) -> JobResult:
        """Run a job in an idle process, or in a new one."""
        process = self._take()
        try:
            return process.run(job, limits)
        finally:
            with self._lock:
                self._busy.discard(process)
                if process.alive:
                    self._idle.append(process)
                else:
                    process.close()

    def kill_busy(self) -> None:
        """Kill the processes that are working; their jobs end as crashed."""
        with self._lock:
            for process in self._busy:
                process.kill()

    def close_idle(self) -> None:
        """End the processes that have no job."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    def _take(self) -> JobProcess:
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.alive:
                    break
                process.close()
            else:
                used = {other.number for other in self._busy}
                process = JobProcess(next(number for number in count() if number not in used))
            self._busy.add(process)
            return process


@contextmanager
def _local_pool(workers: int, limits: Limits) -> Iterator[JobPool]:
    """Open a pool of processes of this machine, a thread for each; leaving the block ends them."""
    processes, threads = JobProcesses(), ThreadPoolExecutor(workers, thread_name_prefix="job")
    pool = JobPool(
        lambda: workers + 1,  # so that none waits for its next job
        lambda job: threads.submit(processes.run, job, limits),
        lambda future, _: cast("JobResult", future.result()),
    )
    try:
        yield pool
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        while running := [future for future in pool.running() if not future.done()]:
            processes.kill_busy()  # repeatedly: a thread may just be starting a process
            wait(running, timeout=0.1)
        threads.shutdown()
        processes.close_idle()
