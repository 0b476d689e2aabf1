"""Commands around the states of a cohort: status, explain, retry, verify."""

from __future__ import annotations

from typing import Annotated

import typer

from wsi_ips.cli.app import Debug, Overrides, RecipeFile, Scheduler, app, parse_overrides, scheduled
from wsi_ips.cli.console import EXIT_PARTIAL, Bars, explained, out
from wsi_ips.cli.tables import print_explanation, print_mismatches, print_status
from wsi_ips.config import load_recipe


@app.command()
def status(recipe: RecipeFile, settings: Overrides = None, debug: Debug = False) -> None:
    """Show the state of every slide of a run, also while it runs: ok, empty, failed (with the reason) or pending."""
    with explained(debug=debug):
        from wsi_ips.pipeline import Run

        print_status(Run.open(load_recipe(recipe, parse_overrides(settings))).states)


@app.command()
def explain(
    recipe: RecipeFile,
    slide: Annotated[str, typer.Argument(metavar="SLIDE", help="slide_id of the manifest.")],
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Tell everything that is known of one slide, and what to do.

    State and reason, file, reader, scale, tiles, times, traceback. Works on nothing and changes nothing.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline import Run
        from wsi_ips.pipeline.tiling.explain import explain as explanation

        run = Run.open(load_recipe(recipe, parse_overrides(settings)))
        print_explanation(explanation(run, slide))


@app.command()
def retry(
    recipe: RecipeFile,
    slides: Annotated[
        list[str] | None, typer.Argument(metavar="[SLIDE]...", help="Failed slides to try; none = all that failed.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All failed slides; as without names.")] = False,
    reason: Annotated[str | None, typer.Option(help="Only slides whose reason holds this text, e.g. memory.")] = None,
    scheduler: Scheduler = None,
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Work again on failed slides, and on no others: after a file was mended, or with other limits (--set compute...).

    Slides that failed in training or later get the state of their tiles, and the next `train`, `predict` or `run` takes
    them again. Exit code 3 where slides are still failed.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline import Run
        from wsi_ips.pipeline.tiling.retry import retry as retried

        values = parse_overrides([*(settings or []), *scheduled(scheduler)])
        with Run.open(load_recipe(recipe, values), Bars()) as run:
            done = retried(run, reason, () if failed else slides or ())
        out.print(f"{len(done.tiled)} slides tiled again, {len(done.restored)} ready for the stage that failed")
        print_status(run.states, only_problems=True)
        if run.states.count("failed"):
            raise typer.Exit(EXIT_PARTIAL)


@app.command()
def verify(recipe: RecipeFile, scheduler: Scheduler = None, settings: Overrides = None, debug: Debug = False) -> None:
    """Check every stored tile index: checksums, geometry, counts, and that slide and recipe are still the same.

    Predictions are computed again from the stored tiles that they were pooled from. Changes nothing. Exit code 3 where
    something does not match; each mismatch is told.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline import Run
        from wsi_ips.pipeline.prediction.verify_scores import verify_scores as verified_scores
        from wsi_ips.pipeline.tiling.verify import verify as verified

        values = parse_overrides([*(settings or []), *scheduled(scheduler)])
        with Run.open(load_recipe(recipe, values), Bars()) as run:
            checked, mismatches = verified(run)
            scores = verified_scores(run)
        print_mismatches(checked, [*mismatches, *scores.mismatches])
        if scores.checked:
            out.print(f"{scores.checked} predictions computed again from their stored tiles: off by {scores.off:.1g}")
        if mismatches or scores.mismatches:
            raise typer.Exit(EXIT_PARTIAL)
