"""The Dask client: a cluster within this process by default, any scheduler by address, SLURM by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from wsi_ips.cluster.worker import close_processes
from wsi_ips.errors import ClusterError, RecipeError

if TYPE_CHECKING:
    from distributed import Client

LEAST_WORKER_GB = 1.0
"""What a slide without pyramid may need; as many workers are started as have it."""
MEMORY_SHARE = 0.8
"""Of the machine; the rest is for this process, the system and its file cache."""
CONNECT_TIMEOUT_S = 20
GONE = "the Dask scheduler is gone; start it and run the same command again: what is done is kept"
LOOPBACK = "127.0.0.1:0"
"""Dask's pages of a cluster within this process: with any other address, None too, they are open to the network."""


def local_workers(wanted: int | None, worker_memory_gb: float | None) -> tuple[int, float]:
    """Workers for this machine and the memory that each may take, GB (10⁹ bytes).

    Parameters
    ----------
    wanted
        Number of workers; None: one per core, fewer where memory does not suffice for so many.
    worker_memory_gb
        Memory of each; None: an equal share of the machine's.
    """
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    whole_gb = MEMORY_SHARE * MEMORY_LIMIT / 1e9
    workers = wanted or max(1, min(CPU_COUNT, int(whole_gb / (worker_memory_gb or LEAST_WORKER_GB))))
    return workers, worker_memory_gb or whole_gb / workers


@contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """A cluster of this process: its workers are threads, each with a process for its jobs beneath."""
    import dask
    from distributed import Client, LocalCluster

    settings = {
        "distributed.worker.memory.target": False,
        "distributed.admin.tick.limit": "60s",
        "distributed.worker.profile.enabled": False,  # it samples this process all the time and keeps an hour of it
    }
    try:
        with (
            dask.config.set(settings),
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=False,
                memory_limit=0,  # a worker here is a thread of this process; the limit is on what is beneath it
                dashboard_address=LOOPBACK,
                worker_dashboard_address=LOOPBACK,
                silence_logs=logging.ERROR,
            ) as cluster,
            Client(cluster) as client,
        ):
            try:
                yield client
            finally:
                close_processes()  # threads that wait for one come free, so that the cluster can end
    finally:
        close_processes()


@contextmanager
def scheduler_client(address: str) -> Iterator[Client]:
    """A scheduler that runs already.

    Raises
    ------
    ClusterError
        None answers there.
    """
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address} ({error}); start one with `dask scheduler`, give its address, "
            "and start workers with `dask worker`"
        ) from error
    with _loss_told():
        try:
            yield client
        finally:
            with suppress(OSError, TimeoutError):  # a scheduler that is gone needs no goodbye
                client.close()


@contextmanager
def slurm_client(jobs: int | None) -> Iterator[Client]:
    """Workers that SLURM starts; queue, cores, memory and time stand in dask-jobqueue's own configuration.

    Parameters
    ----------
    jobs
        SLURM jobs to ask for.

    Raises
    ------
    ClusterError
        dask-jobqueue is missing or not configured.
    RecipeError
        The number of jobs was left open.
    """
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise ClusterError('SLURM needs the extra: pip install "wsi-ips[slurm]"') from error
    if jobs is None:
        raise RecipeError("key `compute.workers`: with `compute.scheduler: slurm` say how many SLURM jobs to ask for")
    with _loss_told(), ExitStack() as stack:
        try:
            cluster = stack.enter_context(SLURMCluster())
        except ValueError as error:
            raise ClusterError(
                f"SLURM: {error}; describe a job in ~/.config/dask/jobqueue.yaml, section `jobqueue.slurm` "
                "(cores, memory, queue, walltime)"
            ) from error
        cluster.scale(jobs=jobs)
        yield stack.enter_context(cluster.get_client())


@contextmanager
def _loss_told() -> Iterator[None]:
    """A scheduler may go at any call to it."""
    from distributed.comm.core import CommClosedError

    try:
        yield
    except CommClosedError as error:
        raise ClusterError(GONE) from error
