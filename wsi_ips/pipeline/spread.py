"""Spread jobs as section ``compute`` says: over the cores of this machine, a Dask cluster, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from wsi_ips.cluster import Job, JobOutcome, Limits, run_here, run_jobs
from wsi_ips.config import ComputeSection
from wsi_ips.fence import Failure

TIMEOUT_TILES = 1000
"""`compute.slide_timeout_s` is for so many tiles of a slide, where its tiles go through a network."""


@dataclass(frozen=True)
class Spread:
    """Jobs on their way.

    Attributes
    ----------
    outcomes
        How they end; None at least once a second. See :func:`wsi_ips.cluster.run_jobs`.
    workers
        Jobs done at a time.
    few_for_memory
        Whether there are fewer of them than cores because memory does not suffice for more.
    """

    outcomes: Iterator[JobOutcome | None]
    workers: int
    few_for_memory: bool = False


@contextmanager
def spread(compute: ComputeSection, jobs: Sequence[Job]) -> Iterator[Spread]:
    """Begin jobs; leaving the block ends what is not done.

    Raises
    ------
    ClusterError
        The scheduler does not answer.
    """
    if compute.workers == 0 and compute.scheduler is None:
        yield Spread(run_here(jobs), 1)
        return
    from wsi_ips.cluster.client import local_client, local_workers, scheduler_client, slurm_client

    memory_gb = compute.worker_memory_gb
    if compute.scheduler is None:
        workers, memory_gb = local_workers(compute.workers, memory_gb)
        few = compute.workers is None and workers < local_workers(None, 1e-3)[0]
        opened, at_a_time = local_client(min(workers, len(jobs))), min(workers, len(jobs))
    else:
        few, at_a_time = False, 0
        slurm = compute.scheduler == "slurm"
        opened = slurm_client(compute.workers) if slurm else scheduler_client(compute.scheduler)
    limits = Limits(compute.slide_timeout_s, None if memory_gb is None else memory_gb * 1000)
    with opened as client:
        outcomes = run_jobs(client, jobs, limits=limits, attempts=compute.slide_attempts)
        try:
            yield Spread(outcomes, at_a_time or max(1, sum(client.nthreads().values())), few)
        finally:
            outcomes.close()  # type: ignore[attr-defined]


def timeout_s(compute: ComputeSection, tiles: int) -> float:
    """Seconds that a slide's tiles may take to go through a network."""
    return compute.slide_timeout_s * max(1, tiles / TIMEOUT_TILES)


def failure_of_job(outcome: JobOutcome) -> Failure:
    """Why a job did not end well; where its process died, with the slide's name and how often it happened."""
    name, result = outcome.job.name, outcome.result
    failure = result.failure or Failure("the process gave no result", "")
    if result.ending == "error":
        return failure
    often = f" ({outcome.attempts} attempts)" if outcome.attempts > 1 else ""
    return Failure(f"slide {name}: {failure.reason}{often}", f"slide {name}: {failure.reason}\n\n{failure.traceback}")
