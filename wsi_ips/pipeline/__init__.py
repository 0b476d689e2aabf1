"""The stages in order, the run folder, and resuming by fingerprint. An error affects one slide, never the cohort.

Names are imported on first use: tiling must work, and start at once, where torch is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_ips.pipeline.run import Run
    from wsi_ips.pipeline.stages import Outcome, run_pipeline, run_stage

__all__ = ["Outcome", "Run", "run_pipeline", "run_stage"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'run' if name == 'Run' else 'stages'}"), name)
