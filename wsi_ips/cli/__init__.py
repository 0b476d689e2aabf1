"""The command line: parse, call, print."""

from wsi_ips.cli import evaluate as _evaluate  # noqa: F401 - its command
from wsi_ips.cli.app import app, main

__all__ = ["app", "main"]
