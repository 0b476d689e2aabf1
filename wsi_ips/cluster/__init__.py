"""Run many jobs, each in its own process: on this machine, or on a Dask cluster.

A crash, a hang or a lack of memory costs one job, and the message names it. Dask is an optional extra; importing this
package loads neither Dask nor torch.
"""

from wsi_ips.cluster.jobs import JobOutcome, LocalPool, run_here, run_jobs
from wsi_ips.cluster.process import Job, Limits, Usage

__all__ = ["Job", "JobOutcome", "Limits", "LocalPool", "Usage", "run_here", "run_jobs"]
