"""Commands for results: ``heatmap``, ``evaluate``, ``view`` and the group ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from wsi_ips.cli.console import EXIT_PARTIAL, Bars, explained, out, say
from wsi_ips.cli.print_results import print_evaluation
from wsi_ips.cli.print_states import print_exported, print_refused, print_status
from wsi_ips.cli.program import (
    RESULTS,
    Checkpoint,
    Debug,
    Overrides,
    RecipeFile,
    Slides,
    app,
    checkpoint_of,
    command,
    read_recipe,
)
from wsi_ips.errors import ViewerError

if TYPE_CHECKING:
    from wsi_ips.pipeline.run import Run
    from wsi_ips.viewer.collection import Collection

RunOrRecipe = Annotated[
    Path, typer.Argument(metavar="RUN|RECIPE", help="Run folder, or recipe file (YAML).", show_default=False)
]
Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder to write to.", show_default=False)]
By = Annotated[
    list[str] | None,
    typer.Option("--by", metavar="COLUMN", help="Column that makes subgroups. Repeatable."),
]
EvaluatedSplit = Annotated[str, typer.Option("--split", help="Slides to report on; those of `val` set the threshold.")]
Threshold = Annotated[
    float | None, typer.Option("--threshold", min=0, max=1, help="Call slides positive from this probability on.")
]
LegacySpacing = Annotated[
    bool, typer.Option("--legacy-spacing", help="FROC with 0.243 µm/px for all slides, as in the challenge's script.")
]


@command(
    RESULTS,
    "wsi-ips heatmap recipe.yaml",
    "wsi-ips heatmap recipe.yaml slide_007 --set heatmap.mpp=2",
)
def heatmap(
    recipe: RecipeFile,
    slides: Slides = None,
    checkpoint: Checkpoint = None,
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Draw the maps of predicted slides over their tissue, and write a hand-off package of each: `handoff/SLIDE`.

    Pictures, QuPath GeoJSON, ASAP XML, OME-TIFF, lesion table, gallery. The default slides are those of heatmap.splits.
    Give the checkpoint that `predict` used.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline import run_until

        loaded = read_recipe(recipe, settings, {"predict.checkpoint": checkpoint_of(checkpoint)})
        run = run_until(loaded, "heatmap", Bars(), slides=slides or [])
        print_status(run.states, only_problems=True)
        if run.states.count("failed"):
            raise typer.Exit(EXIT_PARTIAL)


@command(RESULTS, "wsi-ips evaluate recipe.yaml --by centre")
def evaluate(
    recipe: RecipeFile,
    by: By = None,
    split: EvaluatedSplit = "test",
    threshold: Threshold = None,
    nodes: Annotated[
        str | None,
        typer.Option(
            "--nodes",
            metavar="COLUMN",
            help="Column with negative, itc, micro or macro, to stage patients (pN).",
        ),
    ] = None,
    legacy_spacing: LegacySpacing = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="File for all figures; default: evaluation.json.")
    ] = None,
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Measure predictions: slides with intervals, calibration, subgroups, lesions (CAMELYON16 FROC), patients (pN).

    Threshold and temperature come from the validation slides, never from the slides reported on. Columns `centre`,
    `center`, `site` and `scanner` always make subgroups. `score` measures predictions of other tools.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline import Run
        from wsi_ips.pipeline.evaluate_run import evaluate_run
        from wsi_ips.provenance import atomic_write_json

        with Run.open(read_recipe(recipe, settings)) as run:
            found = evaluate_run(
                run, by=by or (), split=split, threshold=threshold, nodes=nodes, legacy_spacing=legacy_spacing
            )
        print_evaluation(found)
        target = output or run.folder.evaluation
        atomic_write_json(target, found.as_json())
        out.print(f"all figures: {target}", soft_wrap=True)


@command(
    RESULTS,
    "wsi-ips view runs/demo",
    "wsi-ips view slides/",
    "wsi-ips view runs/demo --export-reviews reviews.csv",
)
def view(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="RUN|SLIDE", help="Run folder or its recipe; or slides: files, folders, URLs."),
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0 takes a free one.")] = 8765,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    remote_access: Annotated[
        bool, typer.Option("--remote-access", help="Let other machines connect; needed for any other --host.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="Another name of this server. Repeatable.")
    ] = None,
    token: Annotated[
        bool, typer.Option("--token", help="Ask for a token on this machine too, if several people use it.")
    ] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    cache_mb: Annotated[int, typer.Option("--cache-mb", min=1, help="Size of the cache of encoded tiles, MiB.")] = 128,
    export_reviews: Annotated[
        Path | None,
        typer.Option("--export-reviews", metavar="FILE", help="Write the reviews to a CSV file and exit."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Look at slides in the browser: a run with maps, tiles and reviews, or any slides.

    The server is local. Nothing leaves this machine, and nothing but reviews is written.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline.run_viewer import collection_of
        from wsi_ips.viewer.serve import ServerOptions, serve

        collection = collection_of(targets)
        if export_reviews is not None:
            _write_reviews(collection, export_reviews)
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


export = typer.Typer(no_args_is_help=True, help="Write a run in the formats of other programs: tiles, maps.")
app.add_typer(export, name="export", rich_help_panel=RESULTS)


@command(
    RESULTS,
    "wsi-ips export tiles recipe.yaml --format trident --output trident/",
    name="tiles",
    group=export,
)
def export_tiles_of_run(
    recipe: RecipeFile,
    kind: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", help="Format to write; a wrong name lists them.", show_default=False
        ),
    ],
    output: Output,
    slides: Slides = None,
    features: Annotated[bool, typer.Option("--features", help="Also write the features the run has stored.")] = False,
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Write the tiles of a run as files of CLAM or TRIDENT, to continue there.

    For CLAM also `dataset.csv` and `splits_0.csv`. A slide whose tiles the format cannot express is refused with the
    reason (exit code 3).
    """
    with explained(debug=debug):
        from wsi_ips.pipeline import Run
        from wsi_ips.pipeline.clam_trident import export_tiles

        with Run.open(read_recipe(recipe, settings), Bars()) as run:
            outcome = export_tiles(run, kind, output, slides or [], features=features)
        print_exported(outcome, output)
        if outcome.refused:
            raise typer.Exit(EXIT_PARTIAL)


@command(RESULTS, "wsi-ips export qupath runs/demo --output qupath/", name="qupath", group=export)
def export_qupath_project(target: RunOrRecipe, output: Output, slides: Slides = None, debug: Debug = False) -> None:
    """Write a QuPath project: an image per predicted slide, and a script that loads lesions and tiles into them.

    The script, scripts/load_wsi_ips.groovy, also works in an existing project: it finds images by the names of the
    slide files.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline.export_maps import export_qupath

        with _opened(target) as run:
            found = export_qupath(run, output, slides or ())
        out.print(f"open in QuPath: {output / 'project.qpproj'}; then run its script load_wsi_ips", soft_wrap=True)
        print_refused(len(found.written), found.refused, output)
        if found.refused:
            raise typer.Exit(EXIT_PARTIAL)


@command(RESULTS, "wsi-ips export dicom runs/demo --output dicom/", name="dicom", group=export)
def export_dicom_maps(target: RunOrRecipe, output: Output, slides: Slides = None, debug: Debug = False) -> None:
    """Write probability and attention of DICOM slides as DICOM Parametric Maps (extra `dicom`).

    Float pixels in a pyramid, on the slide's frame of reference, with its patient, study and specimen. A slide that is
    not DICOM is refused (exit code 3).
    """
    with explained(debug=debug):
        from wsi_ips.pipeline.export_maps import export_dicom

        with _opened(target) as run:
            found = export_dicom(run, output, slides or ())
        for slide_id, files in found.written.items():
            say("bold", slide_id, f"{len(files)} files")
            for note in found.notes[slide_id]:
                out.print(f"  [yellow]{escape(note)}[/]", soft_wrap=True)
        print_refused(len(found.written), found.refused, output)
        if found.refused:
            raise typer.Exit(EXIT_PARTIAL)


def _opened(target: Path) -> Run:
    from wsi_ips.pipeline import Run
    from wsi_ips.pipeline.run_viewer import view_recipe

    return Run.open(view_recipe(target), Bars())


def _write_reviews(collection: Collection, path: Path) -> None:
    from wsi_ips.provenance import atomic_write_text
    from wsi_ips.viewer.reviews import ReviewStore

    if collection.reviews is None:
        raise ViewerError("--export-reviews: only a run has reviews; give its folder or recipe")
    atomic_write_text(path, ReviewStore(collection.reviews).csv())
    out.print(f"reviews: {path}", soft_wrap=True)
