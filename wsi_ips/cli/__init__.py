"""The command line: parse, call, print."""

from wsi_ips.cli import crossval as _crossval  # noqa: F401 - its command
from wsi_ips.cli import evaluate as _evaluate  # noqa: F401 - its command
from wsi_ips.cli import predict as _predict  # noqa: F401 - its command
from wsi_ips.cli import states as _states  # noqa: F401 - its commands
from wsi_ips.cli.app import app, main

__all__ = ["app", "main"]
