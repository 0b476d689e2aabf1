"""The terminal: tables, lines, progress bars, error messages and exit codes of all commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from wsi_ips.cluster.machine import Launch
from wsi_ips.errors import WsiIpsError
from wsi_ips.provenance import storage_named

EXIT_UNEXPECTED, EXIT_CONFIGURATION, EXIT_PARTIAL, EXIT_INTERRUPTED = 1, 2, 3, 130

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
FEW = 10


def put(text: str) -> None:
    """Print a line that the terminal wraps, so that it can be copied whole."""
    out.print(text, soft_wrap=True)


def say(colour: str, who: str, what: str) -> None:
    """Print one line about a slide, file or split."""
    put(f"[{colour}]{escape(who)}[/]: {escape(what)}")


def plain_table(*headings: str) -> Table:
    """Return a table without borders; without headings it has only rows."""
    return Table(*headings, box=None, pad_edge=False, show_header=bool(headings))


def exit_partial_if(failed: object) -> None:
    """Exit with code 3 if slides failed."""
    if failed:
        raise typer.Exit(EXIT_PARTIAL)


class Bars:
    """Progress of the stages as bars; without a terminal, one line per stage and note."""

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Draw a bar while the stage runs."""
        columns = (
            SpinnerColumn(),
            TextColumn(f"{title:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        if not out.is_terminal:
            out.print(f"{title}: {total} {unit}")
        with Progress(*columns, console=out, disable=not out.is_terminal) as progress:
            task = progress.add_task(title, total=total)
            yield lambda count: progress.advance(task, count)

    def note(self, text: str) -> None:
        """Print one line above the bar."""
        put(escape(text))


@contextmanager
def explained(*, debug: bool) -> Iterator[None]:
    """Turn any error into one clear message and an exit code.

    2: recipe, manifest, checkpoint, training or disk cannot be used; 1: a bug in the program; 130: Ctrl-C. If several
    processes train together, the first reports the error of all and the others exit with 0, so that ``torchrun`` does
    not kill the first while it does.
    """
    try:
        with storage_named():
            yield
    except WsiIpsError as error:
        if error.is_told:
            raise typer.Exit from None
        _tell("Error", error, debug)
        raise typer.Exit(EXIT_CONFIGURATION) from None
    except KeyboardInterrupt:
        if not Launch.of().is_first:
            raise typer.Exit from None
        err.print("\nStopped. Finished work is kept; the same command resumes from here.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001
        _tell(f"Unexpected {type(error).__name__}", error, debug)
        if not debug:
            err.print("This is a bug in wsi-ips: run again with --debug and report what it prints.")
        raise typer.Exit(EXIT_UNEXPECTED) from None


def _tell(kind: str, error: Exception, debug: bool) -> None:
    if debug:
        err.print_exception()
    launch = Launch.of()
    who = "" if launch.is_first else f"Process {launch.rank} of {launch.size}: "
    err.print(f"{who}[bold red]{kind}:[/] {escape(str(error))}", soft_wrap=True)
