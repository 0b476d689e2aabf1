"""Run many jobs, each in its own process: on this machine, or on a Dask cluster.

A crash, a hang or a lack of memory costs one job, and the message names it. Dask is an optional extra that only
``dask_pool`` imports; no module here imports torch.
"""
