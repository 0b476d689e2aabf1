"""Run jobs where section ``compute`` says: on the cores of this machine, on a Dask cluster, or in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from wsi_ips.cluster import Job, JobOutcome, Limits, LocalPool, run_here, run_jobs
from wsi_ips.cluster.machine import local_workers
from wsi_ips.config import ComputeSection
from wsi_ips.fence import Failure

ATTEMPTS = 2
"""A slide whose process dies is tried once more: the cause may have been another program."""
TIMEOUT_TILES = 1000
"""Where a network processes the tiles, `compute.slide_timeout_s` is the time for this many."""


@dataclass(frozen=True)
class Spread:
    """Running jobs."""

    # outcome of each job, in the order in which they end; None at least once a second. See
    # :func:`wsi_ips.cluster.run_jobs`
    outcomes: Iterator[JobOutcome | None]


@contextmanager
def spread(compute: ComputeSection, jobs: Sequence[Job]) -> Iterator[Spread]:
    """Start jobs; leaving the block stops those that are not done.

    Raises
    ------
    ClusterError
        The Dask scheduler cannot be used.
    """
    if compute.scheduler is None and compute.workers == 0:
        yield Spread(run_here(jobs))
        return
    if compute.scheduler is None:
        workers, memory_gb = local_workers(compute.workers, compute.worker_memory_gb)
        with LocalPool(min(workers, len(jobs)), Limits(compute.slide_timeout_s, memory_gb * 1000)) as local:
            yield Spread(run_jobs(local, jobs, attempts=ATTEMPTS))
        return
    from wsi_ips.cluster.dask_pool import open_pool

    memory_mb = None if compute.worker_memory_gb is None else compute.worker_memory_gb * 1000
    with open_pool(compute.scheduler, compute.workers, Limits(compute.slide_timeout_s, memory_mb)) as pool:
        yield Spread(run_jobs(pool, jobs, attempts=ATTEMPTS))


def timeout_s(compute: ComputeSection, tiles: int) -> float:
    """Return the time limit in seconds for the tiles of a slide that go through a network."""
    return compute.slide_timeout_s * max(1, tiles / TIMEOUT_TILES)


def failure_of_job(outcome: JobOutcome) -> Failure:
    """Return why a job failed; where its process died, with the slide and the number of attempts."""
    name, result = outcome.job.name, outcome.result
    failure = result.failure or Failure("the process gave no result", "")
    if result.ending == "error":
        return failure
    often = f" ({outcome.attempts} attempts)" if outcome.attempts > 1 else ""
    return Failure(f"slide {name}: {failure.reason}{often}", f"slide {name}: {failure.reason}\n\n{failure.traceback}")
