"""Commands for a cohort: ``split``, ``tile`` and ``status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from wsi_ips.cli.console import Bars, exit_partial_if, put, say
from wsi_ips.cli.print_slides import (
    print_explanation,
    print_imported,
    print_mismatches,
    print_not_analysed,
    print_splits,
    print_status,
)
from wsi_ips.cli.program import COHORT, Overrides, RecipeFile, Scheduler, Workers, command, read_recipe
from wsi_ips.errors import RecipeError


@command(
    COHORT,
    "wsi-ips split manifest.csv --output splits.json",
    "wsi-ips split manifest.csv --folds 5 --by centre",
)
def split(
    manifest: Annotated[Path, Argument(metavar="MANIFEST", help="Manifest (CSV).")],
    output: Annotated[Path, Option(metavar="FILE", help="File to write: .json or .csv.")] = Path("splits.json"),
    fractions: Annotated[str, Option(metavar="TRAIN,VAL,TEST", help="Shares of the splits.")] = "0.7,0.1,0.2",
    folds: Annotated[int | None, Option(min=2, help="Make folds instead: each slide is tested once.")] = None,
    stratify: Annotated[
        list[str] | None, Option(metavar="COLUMN", help="Column kept in proportion (default: label). Repeatable.")
    ] = None,
    by: Annotated[str | None, Option(metavar="COLUMN", help="Column of the centre: test on whole centres.")] = None,
    holdout: Annotated[list[str] | None, Option(metavar="CENTRE", help="Test on this centre; needs --by.")] = None,
    look: Annotated[bool, Option(help="Open the slides, and keep copies and look-alikes in one split.")] = True,
    seed: Annotated[int, Option(min=0, help="The same seed gives the same splits.")] = 0,
) -> None:
    """Divide a cohort into splits or folds, keeping patients and copies together and labels in proportion.

    Name the file in the recipe as `split.file`. It contains the splits, how they were made, and their hash.
    """
    from wsi_ips.manifest.splits import write_splits
    from wsi_ips.pipeline.split_cohort import SplitPlan, split_cohort

    if holdout and not by:
        raise RecipeError("--holdout: name the column of the centres with --by")
    plan = SplitPlan(
        fractions=_fractions(fractions),
        folds=folds,
        stratify=tuple(stratify or ["label"]),
        by=by,
        hold_out=tuple(holdout or ()),
        seed=seed,
    )
    outcome = split_cohort(manifest, plan, look=look, progress=Bars())
    write_splits(output, outcome.splits)
    print_splits(outcome, output)


@command(
    COHORT,
    "wsi-ips tile recipe.yaml",
    "wsi-ips tile recipe.yaml --from clam/patches",
    "wsi-ips tile recipe.yaml --scheduler slurm --workers 20",
)
def tile(
    recipe: RecipeFile,
    source: Annotated[
        Path | None, Option("--from", metavar="FOLDER", help="Take tiles of CLAM, TRIDENT, WSInfer, AtlasPatch (.h5).")
    ] = None,
    features_from: Annotated[Path | None, Option(metavar="FOLDER", help="With --from: take features too.")] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    settings: Overrides = None,
) -> None:
    """Find the tissue of every slide and store the positions of its tiles.

    Each slide has its own process, so a bad slide fails alone (exit code 3). Stop it at any time; the same command
    continues. Tiles from another tool are checked against slide and recipe: patch size, level, scale, size of the
    slide. The tool is recognised from its files. Features of its encoder, from CLAM or TRIDENT, can be trained on.
    """
    from wsi_ips.pipeline import run_stage

    options: dict[str, object] = {"compute.scheduler": scheduler, "compute.workers": workers}
    if features_from is not None:
        if source is None:
            raise RecipeError("--features-from: name the coordinate files with --from")
        options |= {"features.imported": str(features_from.resolve()), "model.input": "features"}
    if source is not None:
        options["tiles.imported"] = str(source.resolve())
    loaded = read_recipe(recipe, settings, options)
    run = run_stage(loaded, "features" if source and loaded.features.imported else "tile", Bars())
    if source is not None:
        from wsi_ips.pipeline.read_cohort import coordinate_files

        slides, states = run.slides, run.states
        methods = {r.slide_id: slides.header(r).tissue_method for r in states.with_tiles(slides.records)}
        for path in coordinate_files(source, slides.records).unknown:
            say("yellow", str(path), "belongs to no slide of the manifest")
        print_imported(run.states, methods, source, features_from)
    else:
        print_status(run.states, only_problems=True)
    print_not_analysed(run.states)
    exit_partial_if(run.states.count("failed"))


@command(
    COHORT,
    "wsi-ips status recipe.yaml",
    "wsi-ips status recipe.yaml --explain slide_007",
    "wsi-ips status recipe.yaml --verify",
)
def status(
    recipe: RecipeFile,
    explain: Annotated[str | None, Option(metavar="SLIDE", help="Everything about a slide, and what to do.")] = None,
    verify: Annotated[bool, Option("--verify", help="Verify tiles and predictions; exit code 3 if wrong.")] = False,
    sheet: Annotated[bool, Option("--sheet", help="Write the contact sheet of tissue and tiles again.")] = False,
    report: Annotated[bool, Option("--report", help="Write the report again from what is stored.")] = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    settings: Overrides = None,
) -> None:
    """Show the state of every slide of a run: ok, empty, failed (with the reason) or pending.

    Works during a run. --verify compares checksums, geometry and counts with slides and recipe, and computes
    predictions again from their stored tiles; it changes nothing.
    """
    from wsi_ips.pipeline import Run

    options = {"compute.scheduler": scheduler, "compute.workers": workers}
    with Run.open(read_recipe(recipe, settings, options), Bars()) as run:
        if explain is not None:
            from wsi_ips.pipeline.explain import explain as explanation

            print_explanation(explanation(run.slides, run.states, explain))
        if sheet:
            from wsi_ips.pipeline.tissue_sheet import sheet_stage

            put(f"contact sheet: {sheet_stage(run.recipe.name, run.slides.records, run.states)}")
        if report:
            from wsi_ips.pipeline.stages import report as write_report

            write_report(run)
            put(f"report: {run.folder.report}")
        if verify:
            from wsi_ips.pipeline.verify import verify_predictions, verify_tiles

            tiles = verify_tiles(run.slides, run.states, run.recipe.compute, run.progress)
            exit_partial_if(print_mismatches(tiles, verify_predictions(run.predictions)))
        elif explain is None and not sheet and not report:
            print_status(run.states)
            print_not_analysed(run.states)


def _fractions(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"--fractions {text}: three numbers are expected, e.g. 0.7,0.1,0.2") from None
    if min(train, val, test) < 0 or train <= 0:
        raise RecipeError(f"--fractions {text}: no share may be below 0, and the first must be above 0")
    return train, val, test
