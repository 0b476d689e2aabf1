"""Commands for results, ``heatmap``, ``evaluate``, ``view``, ``export``, and for other tools, ``draw``, ``score``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer
from typer import Argument, Option

from wsi_ips.cli.console import Bars, exit_partial_if, put
from wsi_ips.cli.print_results import print_drawn, print_evaluation
from wsi_ips.cli.print_slides import print_exported, print_status
from wsi_ips.cli.program import (
    OTHER_TOOLS,
    RESULTS,
    Checkpoint,
    Overrides,
    RecipeFile,
    Slides,
    app,
    checkpoint_of,
    choice,
    command,
    parse_overrides,
    read_recipe,
)
from wsi_ips.config import HandoffSection, HeatmapSection
from wsi_ips.errors import RecipeError, ViewerError

if TYPE_CHECKING:
    from wsi_ips.pipeline.run import Run
    from wsi_ips.viewer.collection import Collection

Settings = TypeVar("Settings", HeatmapSection, HandoffSection)
SECTIONS = ("heatmap", "handoff")
DRAWN_AS = ("auto", "probability", "rank")
RunOrRecipe = Annotated[Path, Argument(metavar="RUN|RECIPE", help="Run folder, or recipe.", show_default=False)]
Output = Annotated[Path, Option(metavar="DIR", help="Folder to write to.", show_default=False)]
By = Annotated[list[str] | None, Option(metavar="COLUMN", help="Column that makes subgroups. Repeatable.")]
EvaluatedSplit = Annotated[str, Option(help="Slides to report on; the `val` slides set the threshold.")]
Threshold = Annotated[float | None, Option(min=0, max=1, help="Call slides positive at or above this probability.")]
LegacySpacing = Annotated[
    bool, Option("--legacy-spacing", help="FROC with 0.243 µm/px for all slides, as in the challenge's script.")
]


@command(RESULTS, "wsi-ips heatmap recipe.yaml", "wsi-ips heatmap recipe.yaml slide_007 --set heatmap.mpp=2")
def heatmap(
    recipe: RecipeFile, slides: Slides = None, checkpoint: Checkpoint = None, settings: Overrides = None
) -> None:
    """Draw the maps of predicted slides over their tissue, and write a hand-off package of each: `handoff/SLIDE`.

    Pictures, QuPath GeoJSON, ASAP XML, OME-TIFF, lesion table, gallery. The default slides are those of heatmap.splits.
    Give the checkpoint that `predict` used.
    """
    from wsi_ips.pipeline import run_stage

    loaded = read_recipe(recipe, settings, {"predict.checkpoint": checkpoint_of(checkpoint)})
    run = run_stage(loaded, "heatmap", Bars(), slides=slides or [])
    print_status(run.states, only_problems=True)
    exit_partial_if(run.states.count("failed"))


@command(RESULTS, "wsi-ips evaluate recipe.yaml --by centre")
def evaluate(
    recipe: RecipeFile,
    by: By = None,
    split: EvaluatedSplit = "test",
    threshold: Threshold = None,
    nodes: Annotated[
        str | None, Option(metavar="COLUMN", help="Column with negative, itc, micro or macro, to stage patients (pN).")
    ] = None,
    legacy_spacing: LegacySpacing = False,
    output: Annotated[Path | None, Option(metavar="FILE", help="For all figures; default: evaluation.json.")] = None,
    settings: Overrides = None,
) -> None:
    """Measure predictions: slides with intervals, calibration, subgroups, lesions (CAMELYON16 FROC), patients (pN).

    Threshold and temperature come from the validation slides, never from the slides reported on. Columns `centre`,
    `center`, `site` and `scanner` always make subgroups. `score` measures predictions of other tools.
    """
    from wsi_ips.pipeline import Run
    from wsi_ips.pipeline.evaluate_run import evaluate_run
    from wsi_ips.provenance import atomic_write_json

    with Run.open(read_recipe(recipe, settings)) as run:
        found = evaluate_run(
            run.predictions, by=by or (), split=split, threshold=threshold, nodes=nodes, legacy_spacing=legacy_spacing
        )
    print_evaluation(found)
    target = output or run.folder.evaluation
    atomic_write_json(target, found.as_json())
    put(f"all figures: {target}")


@command(
    RESULTS,
    "wsi-ips view runs/demo",
    "wsi-ips view slides/",
    "wsi-ips view runs/demo --export-reviews reviews.csv",
)
def view(
    targets: Annotated[list[str], Argument(metavar="RUN|SLIDE", help="Run folder, recipe; slides, folders, URLs.")],
    port: Annotated[int, Option(min=0, max=65_535, help="0 picks a free port.")] = 8765,
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    remote_access: Annotated[bool, Option("--remote-access", help="Let other machines connect.")] = False,
    allow_host: Annotated[list[str] | None, Option(metavar="NAME", help="Another server name. Repeatable.")] = None,
    token: Annotated[bool, Option("--token", help="Ask for a token on this machine too.")] = False,
    browser: Annotated[bool, Option(help="Open the page in the browser.")] = True,
    cache_mb: Annotated[int, Option(min=1, help="Size of the cache of encoded tiles, MiB.")] = 128,
    export_reviews: Annotated[Path | None, Option(metavar="FILE", help="Write the reviews to a CSV, and exit.")] = None,
) -> None:
    """Look at slides in the browser: a run with maps, tiles and reviews, or any slides.

    The server is local. Nothing leaves this machine, and nothing but reviews is written.
    """
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


@command(RESULTS, "wsi-ips export tiles recipe.yaml --format trident --output trident/", name="tiles", group=export)
def export_tiles_of_run(
    recipe: RecipeFile,
    kind: Annotated[str, Option("--format", metavar="FORMAT", help="Unknown names list all.", show_default=False)],
    output: Output,
    slides: Slides = None,
    features: Annotated[bool, Option("--features", help="Also write the features the run has stored.")] = False,
    settings: Overrides = None,
) -> None:
    """Write the tiles of a run as files of CLAM or TRIDENT, to continue there.

    For CLAM also `dataset.csv` and `splits_0.csv`. A slide whose tiles the format cannot express is refused with the
    reason (exit code 3).
    """
    from wsi_ips.pipeline import Run
    from wsi_ips.pipeline.export_run import TileFiles, export_tiles

    with Run.open(read_recipe(recipe, settings), Bars()) as run:
        files = TileFiles(kind, output, run.features if features else None)
        found = export_tiles(run.slides, run.states, files, slides or (), run.progress)
    print_exported(found, output)
    exit_partial_if(found.refused)


@command(RESULTS, "wsi-ips export qupath runs/demo --output qupath/", name="qupath", group=export)
def export_qupath_project(target: RunOrRecipe, output: Output, slides: Slides = None) -> None:
    """Write a QuPath project: an image per predicted slide, and a script that loads lesions and tiles into them.

    The script, scripts/load_wsi_ips.groovy, also works in an existing project: it finds images by the names of the
    slide files.
    """
    from wsi_ips.pipeline.export_run import export_qupath

    with _opened(target) as run:
        found = export_qupath(run.maps, output, slides or ())
    put(f"open in QuPath: {output / 'project.qpproj'}; then run its script load_wsi_ips")
    print_exported(found, output)
    exit_partial_if(found.refused)


@command(RESULTS, "wsi-ips export dicom runs/demo --output dicom/", name="dicom", group=export)
def export_dicom_maps(target: RunOrRecipe, output: Output, slides: Slides = None) -> None:
    """Write probability and attention of DICOM slides as DICOM Parametric Maps (extra `dicom`).

    Float pixels in a pyramid, on the slide's frame of reference, with its patient, study and specimen. A slide that is
    not DICOM is refused (exit code 3).
    """
    from wsi_ips.pipeline.export_run import export_dicom

    with _opened(target) as run:
        found = export_dicom(run.maps, output, slides or ())
    print_exported(found, output)
    exit_partial_if(found.refused)


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
    put(f"reviews: {path}")


@command(
    OTHER_TOOLS,
    "wsi-ips draw blockmap.h5 slide.svs --patches patches/slide.h5 --output maps/",
    "wsi-ips draw model-outputs-csv/slide.csv slide.svs --output maps/",
)
def draw(
    scores: Annotated[Path, Argument(metavar="SCORES", help="Scores of another model: .csv or .h5.")],
    slide: Annotated[Path, Argument(metavar="SLIDE", help="The slide they belong to.")],
    output: Output,
    column: Annotated[list[str] | None, Option(metavar="NAME", help="Only draw these scores. Repeatable.")] = None,
    draw_as: Annotated[str, choice(DRAWN_AS, "--as", text="Scale of the colours.")] = "auto",
    tile_px0: Annotated[float | None, Option(min=1, help="Side of a tile, level-0 px, if SCORES has no sizes.")] = None,
    patches: Annotated[Path | None, Option(metavar="FILE", help="CLAM or TRIDENT coordinates with tile sizes.")] = None,
    mpp: Annotated[float | None, Option(help="µm per level-0 px of a slide that lacks it.")] = None,
    settings: Overrides = None,
) -> None:
    """Draw the scores of another model over their slide; needs neither a recipe nor a wsi-ips model.

    SCORES is a CSV with columns x, y (or WSInfer's minx, miny; upper left corner of a tile in level-0 pixels), a column
    per score, and tile sizes in width, height (or --tile-px0). Or an HDF5 file with `coords` and scores, such as CLAM's
    blockmaps (`attention_scores`) and TRIDENT's files. With --as auto, values of 0 to 1 are drawn as they are; all
    others, and columns named attention, as ranks within the slide. --set takes keys of sections heatmap and handoff.
    """
    from wsi_ips.results.draw_scores import DrawAs, ScoresToDraw, draw_scores

    if mpp is not None and mpp <= 0:
        raise RecipeError(f"--mpp {mpp:g}: must be above 0")
    values = parse_overrides(settings)
    drawn = draw_scores(
        ScoresToDraw(scores, slide, tuple(column or ()), cast("DrawAs", draw_as), tile_px0, patches, mpp),
        output,
        pictures=_section(values, "heatmap", HeatmapSection),
        handoff=_section(values, "handoff", HandoffSection),
        note=Bars().note,
    )
    print_drawn(drawn, output)


@command(
    OTHER_TOOLS,
    "wsi-ips score --predictions predictions.csv --by scanner",
    "wsi-ips score --detections csv/ --manifest manifest.csv",
)
def score(
    predictions: Annotated[
        Path | None, Option(metavar="FILE", help="CSV: slide_id, label, probability, split.")
    ] = None,
    detections: Annotated[Path | None, Option(metavar="FOLDER", help="SLIDE_ID.csv: probability, x, y.")] = None,
    manifest: Annotated[Path | None, Option(metavar="FILE", help="Slides, annotations, further columns.")] = None,
    positive: Annotated[str, Option(help="The label that counts as positive.")] = "tumor",
    by: By = None,
    split: EvaluatedSplit = "test",
    threshold: Threshold = None,
    legacy_spacing: LegacySpacing = False,
    output: Annotated[Path | None, Option(metavar="FILE", help="JSON file for all figures and curves.")] = None,
) -> None:
    """Evaluate predictions or detections of another tool, as `evaluate` does for a run.

    Give --predictions, --detections (for FROC) or both. Column split of the predictions may be missing.
    """
    from wsi_ips.pipeline.external_predictions import TableQuestion, evaluate_files
    from wsi_ips.provenance import atomic_write_json

    if predictions is None and detections is None:
        raise RecipeError("give --predictions FILE, --detections FOLDER or both")
    found = evaluate_files(
        TableQuestion(positive, by or (), split, threshold),
        predictions=predictions,
        detections=detections,
        manifest=manifest,
        legacy_spacing=legacy_spacing,
    )
    print_evaluation(found)
    if output is not None:
        atomic_write_json(output, found.as_json())
        put(f"all figures: {output}")


def _section(settings: dict[str, Any], name: str, kind: type[Settings]) -> Settings:
    """Build a section of the recipe from keys of ``--set`` such as ``heatmap.mpp=2``."""
    strange = [key for key in settings if key.partition(".")[0] not in SECTIONS or not key.partition(".")[2]]
    if strange:
        raise RecipeError(f"--set {strange[0]}: `draw` only takes keys of sections {' and '.join(SECTIONS)}")
    values = {key.partition(".")[2]: value for key, value in settings.items() if key.partition(".")[0] == name}
    try:
        return kind.model_validate(values)
    except ValueError as error:
        raise RecipeError(f"section `{name}`: {error}") from error
