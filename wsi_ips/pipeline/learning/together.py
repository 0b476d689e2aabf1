"""What the processes do that ``torchrun`` starts: the first runs the stages, all train."""

from __future__ import annotations

from contextlib import AbstractContextManager

from wsi_ips.cluster.launch import Launch
from wsi_ips.config import Recipe
from wsi_ips.pipeline.learning.train import train_stage
from wsi_ips.pipeline.run import Run
from wsi_ips.training.world import World


def joined(recipe: Recipe) -> AbstractContextManager[World]:
    """The processes of this training, for a ``with`` block; this one alone where ``torchrun`` did not start it."""
    compute = recipe.compute
    return World.joined(Launch.of(), device=compute.device, timeout_s=compute.process_timeout_s)


def train_along(recipe: Recipe) -> None:
    """All that a process does which is not the first: wait until the slides are tiled, then train with the others.

    Raises
    ------
    WsiIpsError
        As in the first process.
    """
    with joined(recipe) as world:
        with world.ahead():
            pass
        with Run.open(recipe) as run:
            train_stage(run, world)
