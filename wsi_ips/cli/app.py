"""Commands of ``wsi-ips``."""

from __future__ import annotations

import signal
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from wsi_ips import __version__
from wsi_ips.cli.cohort import add_commands
from wsi_ips.cli.console import EXIT_PARTIAL, Bars, explained, out
from wsi_ips.cli.export import export
from wsi_ips.cli.other_scores import (
    DrawnAs,
    MapsFolder,
    PatchesFile,
    ScoreColumns,
    ScoredSlide,
    ScoresFile,
    SlideScale,
    TileSide,
    draw_scores,
    other_scores,
)
from wsi_ips.cli.tables import print_encoders, print_status, print_summary
from wsi_ips.cluster.launch import Launch
from wsi_ips.config import Recipe, load_recipe
from wsi_ips.errors import RecipeError

SHARED = ("train", "run")
"""Commands in which the processes that ``torchrun`` starts work together."""

app = typer.Typer(
    help="From gigapixel slides to slide labels and heatmaps, learned end to end on pixels. Research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML); see pipelines/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the recipe, e.g. training.epochs=3."),
]
Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", help="Folder of a trained model to use instead of the run's own.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="Dask scheduler that spreads the slides, e.g. tcp://host:8786, or slurm; else this machine."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")]


def main() -> None:
    """Entry point. A polite kill (SIGTERM), as of batch systems, stops as cleanly as Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit
    if context.invoked_subcommand not in SHARED:  # with torchrun the first process does the rest alone
        if not Launch.of().is_first:
            raise typer.Exit
        Launch.forget()


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of the slides and of the training.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the slides and the results.")] = Path("runs/demo"),
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Make a cohort of synthetic slides and take it all the way to labels, heatmaps and a report.

    No data needed, no GPU needed; a few minutes on two cores.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline.demo_slides import make_slides

        folder = output.resolve()
        manifest = make_slides(folder / "cohort", seed=seed, progress=Bars())
        overrides = {
            "output": str(folder),
            "manifest": str(manifest),
            "seed": seed,
            **parse_overrides(settings),
        }
        with as_file(files("wsi_ips") / "demo.yaml") as path:
            recipe = load_recipe(path, overrides)
        _run(recipe)


add_commands(app)
app.add_typer(export, name="export")


@app.command()
def encoders(debug: Debug = False) -> None:
    """List the presets of `model.encoder`: scale, size and pooling they were made for, licence, access.

    A recipe names one as `preset:NAME`. The licence is that of the weights; the model card decides.
    """
    with explained(debug=debug):
        from wsi_ips.model.presets import PRESETS

        print_encoders(list(PRESETS.values()))


@app.command()
def synth(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for slides, annotations, manifest.")],
    slides: Annotated[int, typer.Option(help="Number of slides; half of them hold tumour.")] = 20,
    seed: Annotated[int, typer.Option(help="The same seed makes the same files.")] = 0,
    debug: Debug = False,
) -> None:
    """Make synthetic slides with planted tumour, ASAP annotations and a manifest.

    Real files: tiled JPEG pyramids in Aperio form that any viewer opens.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline.demo_slides import DEMO, make_slides

        manifest = make_slides(folder, replace(DEMO, slides=slides), seed, Bars())
        out.print(f"manifest: {manifest}", soft_wrap=True)


@app.command()
def tile(recipe: RecipeFile, scheduler: Scheduler = None, settings: Overrides = None, debug: Debug = False) -> None:
    """Find the tissue of every slide and store where its tiles lie.

    Each slide has a process of its own; whatever it does to it, only that slide fails. Stop it as you like: the same
    command goes on.
    """
    _stages(recipe, [*(settings or []), *scheduled(scheduler)], debug, "tile")


@app.command()
def sheet(recipe: RecipeFile, settings: Overrides = None, debug: Debug = False) -> None:
    """Make the contact sheet of tissue and tiles anew: every slide, the most doubtful first.

    `wsi-ips tile` makes it too. Masks lie beside it as GeoJSON for QuPath.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline import Run
        from wsi_ips.pipeline.tiling.sheet import sheet_stage

        page = sheet_stage(Run.open(load_recipe(recipe, parse_overrides(settings))))
        out.print(f"contact sheet: {page}", soft_wrap=True)


@app.command()
def features(
    recipe: RecipeFile,
    slides: Annotated[list[str] | None, typer.Argument(metavar="[SLIDE]...", help="slide_id's; none = all.")] = None,
    scheduler: Scheduler = None,
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Store what the recipe's encoder, as it comes, makes of every tile: 16 bits a number, once.

    With `model.input: features` training learns from them in minutes. Slides are done side by side, each in a process
    that keeps its encoder; stop it as you like: the same command goes on.
    """
    _stages(recipe, [*(settings or []), *scheduled(scheduler)], debug, "features", slides or [])


@app.command()
def train(recipe: RecipeFile, settings: Overrides = None, debug: Debug = False) -> None:
    """Train on the slides of split `train`, end to end on pixels; tiles first what is not tiled yet."""
    _stages(recipe, settings, debug, "train")


@app.command()
def heatmap(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="Recipe file (YAML); left out with --scores.")
    ] = None,
    slides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SLIDE]...", help="slide_id's; none = those of heatmap.splits."),
    ] = None,
    checkpoint: Checkpoint = None,
    scores: ScoresFile = None,
    slide: ScoredSlide = None,
    output: MapsFolder = None,
    column: ScoreColumns = None,
    draw_as: DrawnAs = "auto",
    tile_px0: TileSide = None,
    patches: PatchesFile = None,
    mpp: SlideScale = None,
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Draw the maps of predicted slides over their tissue, and make what is handed over of each: `handoff/SLIDE`.

    Pictures, QuPath GeoJSON, ASAP XML, OME-TIFF, lesion table, gallery. Give the checkpoint of `predict`.

    With --scores FILE --slide SLIDE --output DIR: the scores of another model instead, without recipe and model. FILE
    is a CSV with columns x, y (or minx, miny of WSInfer; level-0 pixels of a tile's upper left corner), a column per
    score, and the tile's size in width, height (or --tile-px0); or an HDF5 file with `coords` and scores, as CLAM's
    blockmaps (`attention_scores`) and TRIDENT's files. Values of 0 to 1 are drawn as they are, all else and whatever is
    named attention as rank within the slide.
    """
    if scores is not None:
        with explained(debug=debug):
            values = parse_overrides(settings)
            wanted = other_scores(scores, slide, column, draw_as, tile_px0, patches, mpp)
            if recipe is not None or checkpoint is not None:
                raise RecipeError("--scores: draws what another model said; leave RECIPE and --checkpoint out")
            draw_scores(wanted, output, values)
        return
    if recipe is None:
        with explained(debug=debug):
            raise RecipeError("name the RECIPE of a run, or a file of scores with --scores")
    _stages(recipe, [*(settings or []), *pinned(checkpoint)], debug, "heatmap", slides or [])


@app.command("run")
def run_all(recipe: RecipeFile, scheduler: Scheduler = None, settings: Overrides = None, debug: Debug = False) -> None:
    """All stages: tile, train, predict, heatmap, report. Run again to go on; nothing is done twice."""
    with explained(debug=debug):
        loaded = load_recipe(recipe, parse_overrides([*(settings or []), *scheduled(scheduler)]))
        if Launch.of().is_first:
            _run(loaded)
        else:
            _train_along(loaded)


@app.command()
def view(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="RUN|SLIDE...", help="Run folder or its recipe; or slides: files, a folder, URLs."),
    ],
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8765,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    remote_access: Annotated[
        bool, typer.Option("--remote-access", help="Other machines may look; needed for any --host but this machine.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name by which browsers call this server.")
    ] = None,
    token: Annotated[
        bool, typer.Option("--token", help="Ask for a token on this machine too, where several people share it.")
    ] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    cache_mb: Annotated[int, typer.Option(min=1, help="Encoded tiles kept, MiB.")] = 128,
    export_reviews: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the reviews of a run to this CSV file and stop.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Look at slides in the browser: of a run with maps, tiles and reviews, or any slides as they are.

    A local server; nothing leaves this machine, and but for reviews nothing is written.
    """
    with explained(debug=debug):
        from wsi_ips.cli.viewing import collection_of, write_reviews
        from wsi_ips.viewer import ServerOptions, serve

        collection = collection_of(targets)
        if export_reviews is not None:
            write_reviews(collection, export_reviews)
            return
        options = ServerOptions(
            host=host,
            port=port,
            remote_access=remote_access,
            allow_hosts=tuple(allow_host or ()),
            ask_token=token,
            cache_mb=cache_mb,
            open_browser=browser,
        )
        serve(collection, options, Bars().note)


def parse_overrides(settings: list[str] | None) -> dict[str, Any]:
    """``KEY=VALUE`` texts as a mapping; values are read as YAML.

    Raises
    ------
    RecipeError
        A text without ``=``, or a value that is no YAML.
    """
    parsed = {}
    for text in settings or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"--set {text}: expected KEY=VALUE, e.g. training.epochs=3")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {text}: the value is not valid YAML: {error}") from error
    return parsed


def _train_along(recipe: Recipe) -> None:
    """What a process that is not the first does: no word, no file."""
    from wsi_ips.pipeline.learning.train import train_along

    train_along(recipe)


def _run(recipe: Recipe) -> None:
    from wsi_ips.pipeline import run_pipeline

    outcome = run_pipeline(recipe, Bars())
    print_summary(outcome)
    if outcome.failed:
        raise typer.Exit(EXIT_PARTIAL)


def scheduled(scheduler: str | None) -> list[str]:
    """A scheduler of the command line as a setting of the recipe."""
    return [f"compute.scheduler={scheduler}"] if scheduler else []


def pinned(checkpoint: Path | None) -> list[str]:
    """A checkpoint of the command line as a setting of the recipe."""
    from wsi_ips.pipeline.prediction.new_slides import bundle_folder

    return [f"predict.checkpoint={bundle_folder(checkpoint.resolve())}"] if checkpoint else []


def _stages(path: Path, settings: list[str] | None, debug: bool, last: str, slides: list[str] | None = None) -> None:
    with explained(debug=debug):
        from wsi_ips.pipeline import run_until

        recipe = load_recipe(path, parse_overrides(settings))
        if not Launch.of().is_first:
            _train_along(recipe)
            return
        run = run_until(recipe, last, Bars(), slides=slides or [])
        print_status(run.states, only_problems=True)
        if run.states.count("failed"):
            raise typer.Exit(EXIT_PARTIAL)
