"""Commands for a cohort: ``split``, ``tile`` and ``status``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_ips.cli.console import EXIT_PARTIAL, Bars, explained, out
from wsi_ips.cli.print_checks import print_splits
from wsi_ips.cli.print_states import (
    print_explanation,
    print_imported,
    print_mismatches,
    print_status,
)
from wsi_ips.cli.program import COHORT, Debug, Overrides, RecipeFile, Scheduler, Workers, command, read_recipe
from wsi_ips.errors import RecipeError

if TYPE_CHECKING:
    from wsi_ips.pipeline.run import Run


@command(
    COHORT,
    "wsi-ips split manifest.csv --output splits.json",
    "wsi-ips split manifest.csv --folds 5 --by centre",
)
def split(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Manifest (CSV).")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="File to write: .json or .csv.")] = Path(
        "splits.json"
    ),
    fractions: Annotated[
        str, typer.Option("--fractions", metavar="TRAIN,VAL,TEST", help="Shares of the parts.")
    ] = "0.7,0.1,0.2",
    folds: Annotated[
        int | None, typer.Option("--folds", min=2, help="Make folds instead: each slide is tested once.")
    ] = None,
    stratify: Annotated[
        list[str] | None,
        typer.Option("--stratify", metavar="COLUMN", help="Column kept in proportion (default: label). Repeatable."),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="COLUMN", help="Column of the centre: test on whole centres.")
    ] = None,
    hold_out: Annotated[
        list[str] | None, typer.Option("--holdout", metavar="CENTRE", help="Test on this centre; needs --by.")
    ] = None,
    look: Annotated[
        bool,
        typer.Option("--look/--no-look", help="Open the slides, and keep copies and look-alikes in one part."),
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same parts.")] = 0,
    debug: Debug = False,
) -> None:
    """Divide a cohort into parts or folds, keeping patients and copies together and labels in proportion.

    Name the file in the recipe as `split.file`. It contains the parts, how they were made, and their hash.
    """
    with explained(debug=debug):
        from wsi_ips.manifest.splits import write_splits
        from wsi_ips.pipeline.split_cohort import SplitPlan, split_cohort

        if hold_out and not by:
            raise RecipeError("--holdout: name the column of the centres with --by")
        plan = SplitPlan(
            fractions=_fractions(fractions),
            folds=folds,
            stratify=tuple(stratify or ["label"]),
            by=by,
            hold_out=tuple(hold_out or ()),
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
        Path | None,
        typer.Option("--from", metavar="FOLDER", help="Take the tiles of CLAM, TRIDENT, WSInfer or AtlasPatch (.h5)."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option("--features-from", metavar="FOLDER", help="With --from: take CLAM's or TRIDENT's features too."),
    ] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Find the tissue of every slide and store the positions of its tiles.

    Each slide has its own process, so a bad slide fails alone (exit code 3). Stop it at any time; the same command goes
    on. Tiles from another tool are checked against slide and recipe: patch size, level, scale, size of the slide; the
    tool is recognised from its files. Features of its encoder can be trained on.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline import run_until

        options: dict[str, object] = {"compute.scheduler": scheduler, "compute.workers": workers}
        if features is not None:
            if source is None:
                raise RecipeError("--features-from: name the coordinate files with --from")
            options |= {"features.imported": str(features.resolve()), "model.input": "features"}
        if source is not None:
            options["tiles.imported"] = str(source.resolve())
        loaded = read_recipe(recipe, settings, options)
        run = run_until(loaded, "features" if source and loaded.features.imported else "tile", Bars())
        if source is not None:
            from wsi_ips.pipeline.clam_trident import imported_tiles

            print_imported(run.states, imported_tiles(run), source, features)
        else:
            print_status(run.states, only_problems=True)
        if run.states.count("failed"):
            raise typer.Exit(EXIT_PARTIAL)


@command(
    COHORT,
    "wsi-ips status recipe.yaml",
    "wsi-ips status recipe.yaml --explain slide_007",
    "wsi-ips status recipe.yaml --verify",
)
def status(
    recipe: RecipeFile,
    explain: Annotated[
        str | None,
        typer.Option("--explain", metavar="SLIDE", help="All that is known of a slide, and what to do."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Verify every stored tile index and prediction; exit code 3 on a mismatch.")
    ] = False,
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Write the contact sheet of tissue and tiles again, most doubtful first.")
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Write the report again from what is stored.")] = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Show the state of every slide of a run: ok, empty, failed (with the reason) or pending.

    Also while a stage runs. --verify compares checksums, geometry and counts with slides and recipe, and computes
    predictions again from their stored tiles; it changes nothing.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline import Run

        options = {"compute.scheduler": scheduler, "compute.workers": workers}
        with Run.open(read_recipe(recipe, settings, options), Bars()) as run:
            if explain is not None:
                from wsi_ips.pipeline.explain import explain as explanation

                print_explanation(explanation(run, explain))
            if sheet or report:
                _write_pages(run, sheet=sheet, report=report)
            if verify:
                _verify(run)
            elif explain is None and not sheet and not report:
                print_status(run.states)


def _write_pages(run: Run, *, sheet: bool, report: bool) -> None:
    if sheet:
        from wsi_ips.pipeline.tissue_sheet import sheet_stage

        out.print(f"contact sheet: {sheet_stage(run)}", soft_wrap=True)
    if report:
        from wsi_ips.pipeline.report_stage import report_stage

        report_stage(run)
        out.print(f"report: {run.folder.report}", soft_wrap=True)


def _verify(run: Run) -> None:
    from wsi_ips.pipeline.verify import verify_predictions, verify_tiles

    if print_mismatches(verify_tiles(run), verify_predictions(run)):
        raise typer.Exit(EXIT_PARTIAL)


def _fractions(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"--fractions {text}: three numbers are expected, e.g. 0.7,0.1,0.2") from None
    if min(train, val, test) < 0 or train <= 0:
        raise RecipeError(f"--fractions {text}: no share may be below 0, and the first must be above 0")
    return train, val, test
