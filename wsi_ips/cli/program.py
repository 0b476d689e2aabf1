"""The program ``wsi-ips``: its entry point, the panels of its help, and the options that commands share."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml
from typer import Argument, Option

from wsi_ips import __version__
from wsi_ips.cli.console import explained, out
from wsi_ips.cluster.machine import Launch
from wsi_ips.config import Recipe, load_recipe
from wsi_ips.config.recipe import parse_yaml, shown
from wsi_ips.errors import RecipeError

START, COHORT, MODEL, RESULTS, OTHER_TOOLS = "Start", "Cohort", "Model", "Results", "Other tools"  # panels of the help
SHARED = ("train", "run")  # commands in which the processes that `torchrun` starts work together
Command = TypeVar("Command", bound=Callable[..., None])

app = typer.Typer(
    help="From gigapixel slides to slide labels and heatmaps, learned end to end on pixels. Research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[
    Path, Argument(metavar="RECIPE", help="Recipe file (YAML; see pipelines/), or a run folder with one in it.")
]
Slides = Annotated[list[str] | None, Argument(metavar="SLIDE", help="Only these slide_ids.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Replace a key of the recipe, e.g. training.epochs=3. Repeatable."),
]
Checkpoint = Annotated[Path | None, Option(help="Folder of a trained model to use instead of the run's own.")]
Scheduler = Annotated[str | None, Option(help="Dask scheduler (tcp://host:8786) or slurm; default: this machine.")]
Workers = Annotated[int | None, Option(min=0, help="Slides in parallel; 0 = one by one, in this process.")]
Debug = Annotated[bool, Option("--debug", help="Show the full traceback of an error.")]


def main() -> None:
    """Run the program. SIGTERM, which batch systems send, stops it as cleanly as Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name="wsi-ips")


def command(
    panel: str, *examples: str, name: str | None = None, group: typer.Typer = app
) -> Callable[[Command], Command]:
    """Register a command in a panel of the help, with examples in its own help, and with option ``--debug``."""

    def register(function: Command) -> Command:
        @wraps(function)
        def guarded(*, debug: bool, **arguments: Any) -> None:
            with explained(debug=debug):
                function(**arguments)

        own = inspect.signature(function, eval_str=True)
        option = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
        guarded.__signature__ = own.replace(parameters=[*own.parameters.values(), option])  # type: ignore[attr-defined]
        group.command(name, rich_help_panel=panel, epilog="\n\n".join(("Examples:", *examples)))(guarded)
        return function

    return register


def choice(names: Iterable[str], flag: str, *, text: str) -> Any:
    """Return an option that accepts one of several names, listed in its help."""
    known = list(names)

    def parse(given: str) -> str:
        if given not in known:
            raise typer.BadParameter(f"{given}: choose one of {', '.join(known)}")
        return given

    return Option(flag, parser=parse, metavar="|".join(known), help=text, show_default=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in SHARED:  # under torchrun only the first process continues, alone
        if not Launch.of().is_first:
            raise typer.Exit
        Launch.forget()


def read_recipe(path: Path, settings: Sequence[str] | None, options: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe with the overrides of ``--set`` and of other options."""
    return load_recipe(path, overrides_of(settings, options or {}))


def overrides_of(settings: Sequence[str] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the overrides of ``--set`` with those of other options; None = option not given."""
    return parse_overrides(settings) | {key: value for key, value in options.items() if value is not None}


def checkpoint_of(folder: Path | None) -> str | None:
    """Return the model folder for option ``--checkpoint``, which may name a run folder."""
    from wsi_ips.pipeline.new_slides import bundle_folder

    return None if folder is None else str(bundle_folder(folder.resolve()))


def parse_overrides(settings: Sequence[str] | None) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` texts into a mapping; values are read as YAML."""
    parsed = {}
    for text in settings or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"--set {text}: expected KEY=VALUE, e.g. training.epochs=3")
        try:
            parsed[key.strip()] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {shown(text)}: the value is not valid YAML: {shown(str(error))}") from error
    return parsed
