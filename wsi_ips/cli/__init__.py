"""The command line: parse, call, print."""

from wsi_ips.cli import commands_start as _start  # noqa: I001, F401 - the order of commands in the help
from wsi_ips.cli import commands_cohort as _cohort  # noqa: F401
from wsi_ips.cli import commands_model as _model  # noqa: F401
from wsi_ips.cli import commands_results as _results  # noqa: F401
from wsi_ips.cli.program import app, main

__all__ = ["app", "main"]
