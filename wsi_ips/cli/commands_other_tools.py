"""Commands for the output of other tools: ``draw`` and ``score``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from wsi_ips.cli.commands_results import By, EvaluatedSplit, LegacySpacing, Threshold
from wsi_ips.cli.console import Bars, explained, out
from wsi_ips.cli.print_results import print_drawn, print_evaluation
from wsi_ips.cli.program import OTHER_TOOLS, Debug, Overrides, choice, command, parse_overrides
from wsi_ips.config import HandoffSection, HeatmapSection
from wsi_ips.errors import RecipeError

Settings = TypeVar("Settings", HeatmapSection, HandoffSection)
SECTIONS = ("heatmap", "handoff")
DRAWN_AS = ("auto", "probability", "rank")


@command(
    OTHER_TOOLS,
    "wsi-ips draw blockmap.h5 slide.svs --patches patches/slide.h5 --output maps/",
    "wsi-ips draw model-outputs-csv/slide.csv slide.svs --output maps/",
)
def draw(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="Scores of another model: .csv or .h5.")],
    slide: Annotated[Path, typer.Argument(metavar="SLIDE", help="The slide they belong to.")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for maps.", show_default=False)],
    column: Annotated[
        list[str] | None, typer.Option("--column", metavar="NAME", help="Only draw these scores. Repeatable.")
    ] = None,
    draw_as: Annotated[str, choice(DRAWN_AS, "--as", text="Scale of the colours.")] = "auto",
    tile_px0: Annotated[
        float | None, typer.Option("--tile-px0", min=1, help="Side of a tile, level-0 px, if SCORES has no sizes.")
    ] = None,
    patches: Annotated[
        Path | None,
        typer.Option("--patches", metavar="FILE", help="CLAM or TRIDENT coordinates with tile sizes."),
    ] = None,
    mpp: Annotated[float | None, typer.Option("--mpp", help="µm per level-0 px of a slide that lacks it.")] = None,
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Draw the scores of another model over their slide; needs no recipe and no model of ours.

    SCORES is a CSV with columns x, y (or WSInfer's minx, miny; upper left corner of a tile in level-0 pixels), a column
    per score, and tile sizes in width, height (or --tile-px0). Or an HDF5 file with `coords` and scores, such as CLAM's
    blockmaps (`attention_scores`) and TRIDENT's files. With --as auto, values of 0 to 1 are drawn as they are; all
    others, and what is named attention, as rank within the slide. --set takes keys of sections heatmap and handoff.
    """
    with explained(debug=debug):
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
        Path | None,
        typer.Option("--predictions", metavar="FILE", help="CSV: slide_id, label, probability; optional split."),
    ] = None,
    detections: Annotated[
        Path | None,
        typer.Option("--detections", metavar="FOLDER", help="SLIDE_ID.csv (probability, x, y) for FROC."),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", metavar="FILE", help="Slides, annotations, further columns.")
    ] = None,
    positive: Annotated[str, typer.Option("--positive", help="The label that counts as positive.")] = "tumor",
    by: By = None,
    split: EvaluatedSplit = "test",
    threshold: Threshold = None,
    legacy_spacing: LegacySpacing = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write all figures and curves to this JSON file.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure predictions or detections of another tool as `evaluate` measures those of a run.

    Give --predictions, --detections or both.
    """
    with explained(debug=debug):
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
            out.print(f"all figures: {output}", soft_wrap=True)


def _section(settings: Mapping[str, Any], name: str, kind: type[Settings]) -> Settings:
    """Build a section of the recipe from keys of ``--set`` such as ``heatmap.mpp=2``."""
    strange = [key for key in settings if key.partition(".")[0] not in SECTIONS or not key.partition(".")[2]]
    if strange:
        raise RecipeError(f"--set {strange[0]}: `draw` only takes keys of sections {' and '.join(SECTIONS)}")
    values = {key.partition(".")[2]: value for key, value in settings.items() if key.partition(".")[0] == name}
    try:
        return kind.model_validate(values)
    except ValueError as error:
        raise RecipeError(f"section `{name}`: {error}") from error
