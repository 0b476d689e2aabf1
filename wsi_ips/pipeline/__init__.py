"""The stages in order, output layout, resume by fingerprint, one fence per slide."""

from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.stages import Outcome, run_pipeline, run_until

__all__ = ["Outcome", "Run", "run_pipeline", "run_until"]
