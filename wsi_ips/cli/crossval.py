"""The command ``cross-validate``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from wsi_ips.cli.app import Debug, Overrides, RecipeFile, app, parse_overrides
from wsi_ips.cli.console import EXIT_PARTIAL, Bars, explained, out
from wsi_ips.config import load_recipe


@app.command("cross-validate")
def cross_validate(
    recipe: RecipeFile,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Make so many folds; none = those of `split.file` of the recipe.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the centre: a fold tests whole centres.")
    ] = None,
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Train and test once per fold: every slide is predicted by a model that has not seen its patient.

    Tiles are made once. Each fold is a run below the recipe's output (fold_0 ...). Beside them: out_of_fold.csv,
    ensemble.csv (mean of all models for slides in no part), cross_validation.json. Run again to go on.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline.learning.crossval import cross_validate as run_folds
        from wsi_ips.pipeline.learning.crossval import figures_of

        found = run_folds(load_recipe(recipe, parse_overrides(settings)), folds=folds, by=by, progress=Bars())
        table = Table("fold", "slides tested", "AUC (95 % interval)", box=None, pad_edge=False)
        for row in figures_of(found.folds):
            table.add_row(*row)
        out.print(table)
        spread = found.auc_mean_and_spread
        if spread:
            out.print(f"AUC over folds: {spread[0]:.3f}, standard deviation {spread[1]:.3f}")
        if found.pooled and "auc" in found.pooled:
            auc = found.pooled["auc"]
            out.print(f"AUC of all out-of-fold scores together: {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})")
        out.print(f"out-of-fold predictions: {escape(str(found.out_of_fold))}", soft_wrap=True)
        if found.ensemble:
            out.print(f"mean of all models for slides in no part: {escape(str(found.ensemble))}", soft_wrap=True)
        if found.failed:
            raise typer.Exit(EXIT_PARTIAL)
