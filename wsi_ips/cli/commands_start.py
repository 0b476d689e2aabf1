"""Commands to start with: ``demo`` and ``check``."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from wsi_ips.cli.console import EXIT_CONFIGURATION, Bars, exit_partial_if, out, put
from wsi_ips.cli.print_results import print_summary
from wsi_ips.cli.print_slides import print_cost, print_encoders, print_findings, print_report
from wsi_ips.cli.program import START, Overrides, command, parse_overrides
from wsi_ips.config import load_recipe
from wsi_ips.errors import RecipeError

if TYPE_CHECKING:
    from wsi_ips.pipeline.check_slides import CheckReport, Target
    from wsi_ips.training.cost import TrainingCost


@command(START, "wsi-ips demo", "wsi-ips demo --slides-only cohort/ --slides 50 --set lesion_mm=[0.2,1.0]")
def demo(
    seed: Annotated[int, Option(help="The same seed gives the same slides and the same model.")] = 0,
    output: Annotated[Path, Option(help="Folder for slides and results.")] = Path("runs/demo"),
    slides_only: Annotated[Path | None, Option(metavar="DIR", help="Only make slides with a manifest, here.")] = None,
    slides: Annotated[int | None, Option(min=1, help="With --slides-only: how many, half with tumour.")] = None,
    settings: Overrides = None,
) -> None:
    """Make synthetic slides with tumour, train on them, and produce labels, heatmaps and a report.

    It needs no data and no GPU, and takes a few minutes on two cores. The slides are tiled JPEG pyramids in Aperio
    format that any viewer opens. With --slides-only, --set changes a property of the slides.
    """
    from wsi_ips.pipeline import run_pipeline
    from wsi_ips.pipeline.demo_slides import changed_plan, make_slides

    values = parse_overrides(settings)
    if slides_only is not None:
        plan = changed_plan({"slides": slides or 20, "seed": seed, **values})
        put(f"manifest: {make_slides(slides_only, plan, plan.seed, Bars())}")
        return
    if slides is not None:
        raise RecipeError("--slides: only with --slides-only")
    folder = output.resolve()
    manifest = make_slides(folder / "cohort", seed=seed, progress=Bars())
    places = {"output": str(folder), "manifest": str(manifest), "seed": seed}
    with as_file(files("wsi_ips") / "demo.yaml") as path:
        recipe = load_recipe(path, places | values)
    outcome = run_pipeline(recipe, Bars())
    print_summary(outcome)
    exit_partial_if(outcome.failed)


@command(
    START,
    "wsi-ips check",
    "wsi-ips check slides/ --output manifest.csv",
    "wsi-ips check recipe.yaml",
    "wsi-ips check --encoders",
)
def check(
    target: Annotated[
        str | None,
        Argument(
            metavar="TARGET",
            help="Slide (file or URL), folder (CAMELYON, or any slides), manifest (CSV) or recipe (YAML); nothing: "
            "this machine.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path | None, Option(metavar="FILE", help="Write the manifest of a folder to this CSV.")] = None,
    folder: Annotated[Path | None, Option(help="Search this folder, not the slides' own, for files in no row.")] = None,
    encoders: Annotated[bool, Option("--encoders", help="List the encoder presets and their licences.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Check this machine, or slides, before any work.

    Machine: versions, cores, memory, GPU, disk. Slides: whether and how each can be read, its scale, copies, files in
    no row, tiles to expect. Of a recipe: also what it needs of the machine. Exit code 2 if something will not work, 3
    if a slide cannot be used.
    """
    if encoders:
        from wsi_ips.model.encoders import PRESETS

        print_encoders(list(PRESETS.values()))
    else:
        _check(target, output, folder, as_json=as_json)


def _training_cost(target: Target, report: CheckReport) -> TrainingCost | None:
    """Return the cost of the training of a recipe, None where it trains nothing."""
    recipe, tiles = target.recipe, {row.slide_id: row.tiles for row in report.rows if row.tiles and not row.problem}
    if recipe is None or recipe.predict.checkpoint is not None:
        return None
    known = [record for record in target.records if record.slide_id in tiles]
    train, val = ([tiles[r.slide_id] for r in known if r.split == split] for split in ("train", "val"))
    if not train:
        return None
    from wsi_ips.training.cost import training_cost

    outlined = sum(record.annotation is not None for record in known if record.split == "train")
    return training_cost(recipe, train, val, outlined)


def _check(target: str | None, output: Path | None, folder: Path | None, *, as_json: bool) -> None:
    from wsi_ips.pipeline.check_machine import check_machine
    from wsi_ips.pipeline.check_slides import check_cohort, find_target
    from wsi_ips.pipeline.progress import Silent

    found = find_target(target, write_to=output, folder=folder) if target else None
    recipe = found.recipe if found else None
    machine = check_machine(recipe.output if recipe else Path.cwd(), recipe) if recipe or not found else []
    report = check_cohort(found, Silent() if as_json else Bars()) if found else None
    if as_json:
        cost = _training_cost(found, report) if found and report else None
        values = {"machine": [asdict(finding) for finding in machine], **(report.to_dict() if report else {})}
        values |= {"training": asdict(cost)} if cost else {}
        out.print(json.dumps(values, indent=2, ensure_ascii=False), soft_wrap=True, markup=False)
    else:
        if report:
            print_report(report)
        cost = _training_cost(found, report) if found and report else None  # may fail where an encoder cannot be built
        if cost:
            print_cost(cost)
        print_findings(machine, only_problems=report is not None)
    if any(finding.verdict == "wrong" for finding in machine):
        raise typer.Exit(EXIT_CONFIGURATION)
    exit_partial_if(report and report.unusable)
