"""Run a list of jobs in order, several at a time, and retry those whose process died."""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from typing import Any, Self

from wsi_ips.cluster.child import do_job
from wsi_ips.cluster.process import Job, JobProcess, JobResult, Limits

TICK_S = 1.0


@dataclass(frozen=True)
class JobOutcome:
    """Final result of a job."""

    job: Job
    result: JobResult  # result of its last attempt
    attempts: int = 1  # number of attempts


class JobPool:
    """Base of the pools: keeps the futures of the submitted jobs and hands out the results as they arrive."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: dict[int, tuple[Job, Any]] = {}

    def room(self) -> int:
        """Return how many jobs to submit at a time."""
        raise NotImplementedError

    def submit(self, job: Job) -> Any:
        """Submit a job and return its future."""
        raise NotImplementedError

    def result_of(self, future: Any, job: Job) -> JobResult:
        """Return the result of a finished future."""
        raise NotImplementedError

    def add(self, job: Job) -> None:
        """Submit a job."""
        future = self.submit(job)
        self._running[id(future)] = job, future
        future.add_done_callback(self._ended.put)

    def next_ended(self, timeout_s: float) -> tuple[Job, JobResult] | None:
        """Wait for a job to end and return it with its result; None when none ended in time."""
        try:
            future = self._ended.get(timeout=timeout_s)
        except queue.Empty:
            return None
        job, _ = self._running.pop(id(future))
        return job, self.result_of(future, job)

    def running(self) -> list[Any]:
        """Return the futures that have not ended."""
        return [future for _, future in self._running.values()]


def run_here(jobs: Sequence[Job]) -> Iterator[JobOutcome | None]:
    """Run jobs in this process, one after another, without protection from crashes and hangs."""
    for job in jobs:
        yield JobOutcome(job, do_job(job))


def run_jobs(pool: JobPool, jobs: Sequence[Job], *, attempts: int) -> Iterator[JobOutcome | None]:
    """Run jobs in a pool, started in their order.

    A job whose process died or was stopped is tried again after the others. An error that the job raised is its
    result: it would happen again.

    Parameters
    ----------
    pool
        Where they run.
    jobs
        Jobs with different names.
    attempts
        Most attempts per job.

    Yields
    ------
    JobOutcome or None
        One per job, in the order in which they end; None at least once a second, so that the caller can print its
        progress.

    Raises
    ------
    ClusterError
        The scheduler is gone, or its workers cannot run this program.
    """
    waiting, tried, running = deque(jobs), Counter[str](), 0
    while waiting or running:
        while waiting and running < pool.room():
            job = waiting.popleft()
            tried[job.name] += 1
            pool.add(job)
            running += 1
        ended = pool.next_ended(TICK_S)
        if ended is None:
            yield None
            continue
        job, result = ended
        running -= 1
        if result.ending not in ("done", "error") and tried[job.name] < attempts:
            waiting.append(job)
        else:
            yield JobOutcome(job, result, tried[job.name])


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
            process = None
            while self._idle and process is None:
                process = self._idle.pop()
                if not process.alive:
                    process.close()
                    process = None
            if process is None:
                used = {other.number for other in (*self._idle, *self._busy)}
                process = JobProcess(next(number for number in count() if number not in used))
            self._busy.add(process)
            return process


class LocalPool(JobPool):
    """Runs jobs in processes of this machine: a thread per worker, each with a process for its jobs.

    Use it as a context manager; leaving the block ends the processes.

    Parameters
    ----------
    workers
        Jobs at a time.
    limits
        When a job is stopped.
    """

    def __init__(self, workers: int, limits: Limits) -> None:
        super().__init__(limits)
        self._workers = workers
        self._processes = JobProcesses()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="job")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        while running := [future for future in self.running() if not future.done()]:
            self._processes.kill_busy()  # repeatedly: a thread may just be starting a process
            wait(running, timeout=0.1)
        self._threads.shutdown()
        self._processes.close_idle()

    def room(self) -> int:
        """Return one more than the number of workers, so that none waits for its next job."""
        return self._workers + 1

    def submit(self, job: Job) -> Future[JobResult]:
        """Submit a job and return its future."""
        return self._threads.submit(self._processes.run, job, self.limits)

    def result_of(self, future: Future[JobResult], job: Job) -> JobResult:  # noqa: ARG002
        """Return the result of a finished future."""
        return future.result()
