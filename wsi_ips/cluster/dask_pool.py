"""Run jobs on a Dask cluster: a scheduler by its address, or workers that SLURM starts. Needs the extra ``cluster``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from wsi_ips.cluster.jobs import JobPool, JobProcesses
from wsi_ips.cluster.process import Job, JobResult, Limits
from wsi_ips.errors import ClusterError, Failure, RecipeError

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_TIMEOUT_S = 20
COUNT_WORKERS_EVERY_S = 5.0
GONE = "the Dask scheduler is gone; start it and run the same command again: finished slides are kept"

_processes = JobProcesses()  # those of this Dask worker


@contextmanager
def open_pool(scheduler: str, workers: int | None, limits: Limits) -> Iterator[JobPool]:
    """Connect to a scheduler by its address, or start ``workers`` jobs for ``slurm``, for a ``with`` block.

    Without a memory limit, each job may take its worker's share. Leaving the block cancels jobs that have not begun.
    """
    if scheduler == "slurm" and workers is None:
        raise RecipeError("key `compute.workers`: with `compute.scheduler: slurm` say how many SLURM jobs to ask for")
    with _translated_errors(), ExitStack() as stack:
        client = _slurm_client(stack, workers) if scheduler == "slurm" else _client(stack, scheduler)

        def submit(job: Job) -> Future[JobResult]:
            # Dask keeps statistics for the first word of each key forever, so all slides share one word.
            key = f"slide-0{secrets.token_hex(8)}"
            return client.submit(run_on_worker, job, limits, key=key, pure=False)

        @lru_cache(maxsize=1)  # workers are counted once per period: a call over the network
        def room(_period: float) -> int:
            try:
                threads: int = sum(client.nthreads().values())
                return max(1, 2 * threads)  # a second job per thread, so that none waits for the network
            except (OSError, TimeoutError) as error:
                raise ClusterError(GONE) from error

        pool = JobPool(lambda: room(time.monotonic() // COUNT_WORKERS_EVERY_S), submit, _result_of)
        try:
            yield pool
        finally:
            if client.status == "running":
                with suppress(OSError, TimeoutError):  # the scheduler may be gone
                    if pool.running():
                        client.cancel(pool.running(), force=True)
                    client.run(close_processes, on_error="ignore")


def _client(stack: ExitStack, address: str) -> Client:
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address} ({error}); start one with `dask scheduler`, give its address, "
            "and start workers with `dask worker`"
        ) from error
    stack.callback(_close, client)
    return client


def _close(client: Client) -> None:
    with suppress(OSError, TimeoutError):  # the scheduler may be gone
        client.close()


def _slurm_client(stack: ExitStack, jobs: int | None) -> Client:
    """Start workers with SLURM; dask-jobqueue's own configuration sets queue, cores, memory and time."""
    from dask_jobqueue.slurm import SLURMCluster

    try:
        cluster = stack.enter_context(SLURMCluster())
    except ValueError as error:
        raise ClusterError(
            f"SLURM: {error}; describe a job in ~/.config/dask/jobqueue.yaml, section `jobqueue.slurm` "
            "(cores, memory, queue, walltime)"
        ) from error
    cluster.scale(jobs=jobs)
    client: Client = stack.enter_context(cluster.get_client())
    return client


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Turn a missing library and a lost scheduler into a `ClusterError`."""
    try:
        from distributed.comm.core import CommClosedError

        try:
            yield
        except CommClosedError as error:
            raise ClusterError(GONE) from error
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"`compute.scheduler` needs {error.name}, which is not installed: pip install 'wsi-ips[cluster]'"
        ) from error


def _result_of(future: Future[JobResult], job: Job) -> JobResult:
    """Return the result of a finished future."""
    from distributed import KilledWorker

    if future.status == "finished":
        return future.result()
    if future.status == "cancelled":
        raise ClusterError(GONE)
    error = future.exception()
    if isinstance(error, KilledWorker):
        reason = "its Dask workers were lost each time: check their logs and the memory of their machines"
        return JobResult("lost", failure=Failure(reason, str(error)))
    raise ClusterError(
        f"a Dask worker cannot process slide {job.name} ({type(error).__name__}: {error}); install the same version of "
        "wsi-ips where the workers run"
    ) from error


def run_on_worker(job: Job, limits: Limits) -> JobResult:
    """Run a job in a child process of this Dask worker; by default with the worker's memory per thread."""
    from distributed import get_worker

    worker = get_worker()
    memory_limit = worker.memory_manager.memory_limit
    if limits.memory_mb is None and memory_limit:
        limits = replace(limits, memory_mb=memory_limit / worker.state.nthreads / 1e6)
    return _processes.run(job, limits)


def close_processes() -> None:
    """End the idle processes of this Dask worker."""
    _processes.close_idle()
