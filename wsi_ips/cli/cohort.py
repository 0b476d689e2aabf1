"""Commands about a cohort and a machine before any work, and about other tools.

Check, doctor, split, import; the command behind `export tiles`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_ips.cli.cohort_tables import (
    print_exported,
    print_findings,
    print_imported,
    print_report,
    print_splits,
    report_dict,
    write_rows,
)
from wsi_ips.cli.console import EXIT_CONFIGURATION, EXIT_PARTIAL, Bars, explained, out
from wsi_ips.config import load_recipe
from wsi_ips.errors import RecipeError

Debug = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Threads = Annotated[int, typer.Option("--threads", min=1, max=256, help="Slides opened at a time.")]


def add_commands(app: typer.Typer) -> None:
    """Put these commands into the program."""
    app.command()(check)
    app.command()(doctor)
    app.command()(split)
    app.command("import")(import_tiles)


def check(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET", help="Manifest (CSV), recipe (YAML), or a folder: CAMELYON16-style or any slides."
        ),
    ],
    write: Annotated[
        Path | None, typer.Option("--write", help="Write the manifest found in a folder to this CSV file.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="List files of this folder that are in no row (else: of the slides' folders)."),
    ] = None,
    tissue_share: Annotated[
        float, typer.Option("--tissue-share", min=0.01, max=1, help="Share of the grid taken to be tissue.")
    ] = 0.3,
    threads: Threads = 8,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write a row per slide to this CSV file.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read the header of every slide: can it be opened, by which reader and why, at what scale, how much work it is.

    Also: copies under other names, scales of the cohort, files in no row. Exit code 3 where a slide cannot be used.
    """
    with explained(debug=debug):
        from dataclasses import replace

        from wsi_ips.pipeline.checks.check import check_cohort, find_target
        from wsi_ips.pipeline.progress import Silent

        found = find_target(target, write_to=write, folder=folder)
        found = found._replace(settings=replace(found.settings, tissue_share=tissue_share))
        report = check_cohort(found, threads=threads, progress=Silent() if as_json else Bars())
        if csv is not None:
            write_rows(csv, report)
        if as_json:
            _print_json(report_dict(report))
        else:
            print_report(report)
        if report.unusable:
            raise typer.Exit(EXIT_PARTIAL)


def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Recipe whose output and wishes are looked at.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at this installation and machine: versions, OpenSlide, JPEG decoder, GPU, cores, memory, disk.

    Says what is wrong and what to do. Exit code 2 where something will not work.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline.checks.doctor import examine

        loaded = load_recipe(recipe) if recipe else None
        findings = examine(loaded.output if loaded else Path.cwd(), loaded)
        if as_json:
            _print_json([finding.to_dict() for finding in findings])
        else:
            print_findings(findings)
        if any(finding.verdict == "wrong" for finding in findings):
            raise typer.Exit(EXIT_CONFIGURATION)


def split(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Manifest (CSV).")],
    to: Annotated[Path, typer.Option("--to", help="File to write: .json or .csv.")] = Path("splits.json"),
    fractions: Annotated[
        str, typer.Option("--fractions", metavar="TRAIN,VAL,TEST", help="Shares of the parts.")
    ] = "0.7,0.1,0.2",
    folds: Annotated[
        int | None, typer.Option("--folds", min=2, help="Folds instead of fixed parts: each slide is tested once.")
    ] = None,
    stratify: Annotated[
        list[str] | None,
        typer.Option("--stratify", metavar="COLUMN", help="Columns kept in proportion; `label` if none is named."),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="COLUMN", help="Column of the centre: whole centres are tested.")
    ] = None,
    hold_out: Annotated[
        list[str] | None, typer.Option("--holdout", metavar="CENTRE", help="This centre is tested; needs --by.")
    ] = None,
    look: Annotated[
        bool,
        typer.Option("--look/--no-look", help="Open the slides and keep copies and look-alikes in one part."),
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed makes the same parts.")] = 0,
    debug: Debug = False,
) -> None:
    """Divide a cohort into parts or folds: patients and copies together, labels in proportion.

    The file is named in the recipe as `split.file`; it says who is where, how it was made, and its hash.
    """
    with explained(debug=debug):
        from wsi_ips.manifest import write_splits
        from wsi_ips.pipeline.checks.split import SplitPlan, split_cohort

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
        write_splits(to, outcome.splits)
        print_splits(outcome, to)


def import_tiles(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Coordinate files of CLAM, TRIDENT, WSInfer or AtlasPatch (.h5).")
    ],
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="FOLDER", help="Also take the features that CLAM or TRIDENT made of them."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the recipe, e.g. tiles.patch_px=512."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Take the tiles of another tool instead of our own; which tool is seen from the files.

    They are checked against slide and recipe: patch size, level, scale, size of the slide. A slide whose file
    contradicts
    fails with the reason (exit code 3). To keep them, write `imported: FOLDER` into section `tiles` of the recipe. With
    --features also what another tool's encoder made of each tile, to train on.
    """
    with explained(debug=debug):
        from wsi_ips.cli.app import parse_overrides
        from wsi_ips.pipeline.tiling.neighbours import import_stage

        overrides = {**parse_overrides(settings), "tiles.imported": str(folder.resolve())}
        if features is not None:
            overrides |= {"features.imported": str(features.resolve()), "model.input": "features"}
        outcome = import_stage(load_recipe(recipe, overrides), Bars())
        print_imported(outcome, folder, features)
        if outcome.failed:
            raise typer.Exit(EXIT_PARTIAL)


def export_tiles(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")],
    slides: Annotated[list[str] | None, typer.Argument(metavar="[SLIDE]...", help="slide_id's; none = all.")] = None,
    kind: Annotated[str, typer.Option("--format", metavar="clam|trident", help="Whose files to write.")] = "",
    to: Annotated[Path | None, typer.Option("--to", help="Folder to write to.")] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Also write the features that `wsi-ips features` stored.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the recipe.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the tiles of a run as CLAM or TRIDENT write theirs, so that they can go on from there.

    For CLAM also `dataset.csv` and `splits_0.csv`. A slide whose tiles the format cannot express is refused with the
    reason (exit code 3).
    """
    with explained(debug=debug):
        from wsi_ips.cli.app import parse_overrides
        from wsi_ips.pipeline.tiling.neighbours import export_run
        from wsi_ips.tiles.interop import TILE_FORMATS

        writable = [entry.name for entry in TILE_FORMATS.values() if entry.writes]
        if kind not in writable:
            raise RecipeError(f"--format {kind or '(not given)'}: write one of {', '.join(writable)}")
        if to is None:
            raise RecipeError("--to: name the folder to write to")
        outcome = export_run(
            load_recipe(recipe, parse_overrides(settings)), kind, to, slides or [], Bars(), features=features
        )
        print_exported(outcome, to)
        if outcome.refused:
            raise typer.Exit(EXIT_PARTIAL)


def _fractions(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"--fractions {text}: three numbers are expected, e.g. 0.7,0.1,0.2") from None
    if min(train, val, test) < 0 or train <= 0:
        raise RecipeError(f"--fractions {text}: none below 0, and something to train on")
    return train, val, test


def _print_json(value: Any) -> None:
    out.print(json.dumps(value, indent=2, ensure_ascii=False), soft_wrap=True, markup=False)
