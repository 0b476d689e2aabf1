"""The stages in order, output layout, resume by fingerprint, one fence per slide.

Before a cohort is worked on: ``checks``. The stages: ``tiling``, ``learning``, ``prediction``, ``maps``,
``evaluate_run`` (measures a run by :mod:`wsi_ips.evaluation`) and ``report_stage``. Beside them what all use.

Names are loaded when they are asked for: tiling must work, and start at once, where torch is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_ips.pipeline.run import Run
    from wsi_ips.pipeline.stages import Outcome, run_pipeline, run_until

__all__ = ["Outcome", "Run", "run_pipeline", "run_until"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'run' if name == 'Run' else 'stages'}"), name)
