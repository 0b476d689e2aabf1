"""Many jobs through a Dask client: in order, a few at a time, again where a process died."""

from __future__ import annotations

import queue
import secrets
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_ips.cluster.child import do_job
from wsi_ips.cluster.client import GONE
from wsi_ips.cluster.process import Job, JobResult, Limits
from wsi_ips.cluster.worker import close_processes, work
from wsi_ips.errors import ClusterError
from wsi_ips.fence import Failure

if TYPE_CHECKING:
    from distributed import Client, Future

TICK_S = 1.0
COUNT_WORKERS_EVERY_S = 5.0


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended in the end.

    Attributes
    ----------
    job
        The job.
    result
        Of its last attempt.
    attempts
        How often it was tried.
    """

    job: Job
    result: JobResult
    attempts: int = 1


def run_here(jobs: Sequence[Job]) -> Iterator[JobOutcome | None]:
    """Do jobs in this process, one after another: nothing protects it from a crash or a hang."""
    for job in jobs:
        yield JobOutcome(job, do_job(job))


def run_jobs(client: Client, jobs: Sequence[Job], *, limits: Limits, attempts: int) -> Iterator[JobOutcome | None]:
    """Do jobs on the workers of a Dask cluster, begun in their order.

    A job whose process died, was stopped, or whose worker went away is tried again after the others. An error
    that the job itself raised is its result: it would come again.

    Parameters
    ----------
    client
        Connected to the cluster.
    jobs
        Of different names.
    limits
        When a job is stopped.
    attempts
        How often a job is tried.

    Yields
    ------
    JobOutcome or None
        One per job, as they end; None at least once a second, so that the caller can look at the clock.

    Raises
    ------
    ClusterError
        The scheduler is gone, or its workers cannot run this program.
    """
    waiting, tried, at_work = deque(jobs), Counter[str](), _AtWork(client, limits)
    try:
        while waiting or at_work.jobs:
            while waiting and len(at_work.jobs) < at_work.room():
                job = waiting.popleft()
                tried[job.name] += 1
                at_work.add(job)
            ended = at_work.next_ended(TICK_S)
            if ended is None:
                yield None
                continue
            job, result = ended
            if result.ending not in ("done", "error") and tried[job.name] < attempts:
                waiting.append(job)
            else:
                yield JobOutcome(job, result, tried[job.name])
    finally:
        at_work.stop()


class _AtWork:
    """Jobs that the cluster has at the moment."""

    def __init__(self, client: Client, limits: Limits) -> None:
        self._client, self._limits = client, limits
        self._ended: queue.SimpleQueue[Future[JobResult]] = queue.SimpleQueue()
        self._futures: dict[str, Future[JobResult]] = {}
        self._room, self._counted = 0, float("-inf")
        self.jobs: dict[str, Job] = {}

    def room(self) -> int:
        """Jobs to have at work: a second one for each thread, that none waits for the way there and back."""
        if time.monotonic() - self._counted > COUNT_WORKERS_EVERY_S:
            try:
                self._room = max(1, 2 * sum(self._client.nthreads().values()))
            except (OSError, TimeoutError) as error:
                raise ClusterError(GONE) from error
            self._counted = time.monotonic()
        return self._room

    def add(self, job: Job) -> None:
        # Dask keeps figures for each first word of a key, for ever: one word for all slides.
        key = f"slide-0{secrets.token_hex(8)}"
        future = self._client.submit(work, job, self._limits, key=key, pure=False)
        self.jobs[key], self._futures[key] = job, future
        future.add_done_callback(self._ended.put)

    def next_ended(self, timeout_s: float) -> tuple[Job, JobResult] | None:
        try:
            future = self._ended.get(timeout=timeout_s)
        except queue.Empty:
            return None
        key = str(future.key)
        job = self.jobs.pop(key)
        del self._futures[key]
        return job, _result(future, job)

    def stop(self) -> None:
        """Take back what was not begun, and end the processes that wait for nothing."""
        if self._client.status != "running":
            return
        with suppress(OSError, TimeoutError):  # the scheduler may have gone; then there is nothing to take back
            if self._futures:
                self._client.cancel(list(self._futures.values()), force=True)
            self._client.run(close_processes, idle_only=True, on_error="ignore")


def _result(future: Future[JobResult], job: Job) -> JobResult:
    from distributed import KilledWorker

    if future.status == "finished":
        result: JobResult = future.result()
        return result
    if future.status == "cancelled":
        raise ClusterError(GONE)
    error = future.exception()
    if isinstance(error, KilledWorker):
        reason = "the workers that had it went away, each time: look at their logs and at the memory of their machines"
        return JobResult("lost", failure=Failure(reason, str(error)))
    raise ClusterError(
        f"a Dask worker cannot do slide {job.name} ({type(error).__name__}: {error}); install the same version of "
        "wsi-ips where the workers run"
    ) from error
