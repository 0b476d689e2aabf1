"""Many jobs, each in a process that may die of it; on this machine, or on any Dask cluster.

Dask says which machine works on what. On each worker the job itself runs in a process beneath it
(:mod:`wsi_ips.cluster.process`), so that a crash, a hang or a lack of memory has exactly one culprit. Importing
this loads neither Dask nor torch.
"""

from wsi_ips.cluster.jobs import JobOutcome, run_here, run_jobs
from wsi_ips.cluster.process import Job, Limits, Usage

__all__ = ["Job", "JobOutcome", "Limits", "Usage", "run_here", "run_jobs"]
