"""The commands ``evaluate`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from wsi_ips.cli.app import Debug, Overrides, RecipeFile, app, parse_overrides
from wsi_ips.cli.console import Bars, explained, out
from wsi_ips.config import load_recipe
from wsi_ips.errors import RecipeError

if TYPE_CHECKING:
    from wsi_ips.evaluation import (
        Evaluation,
        Froc,
        Interval,
        Localisation,
        Patients,
        SlideEvaluation,
        TaskEvaluation,
    )


@app.command()
def evaluate(  # noqa: PLR0913, PLR0917 - each is an option of the command
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Recipe of a run with predictions.", show_default=False)
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Instead of a run: CSV with slide_id, label, probability (and split, to fix the threshold)."),
    ] = None,
    detections: Annotated[
        Path | None,
        typer.Option(help="Instead of a run: folder with SLIDE_ID.csv (probability, x, y) for FROC; with --manifest."),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(help="With --predictions or --detections: slides, annotations, and columns the table lacks."),
    ] = None,
    positive: Annotated[str, typer.Option(help="With these: the label that counts as positive.")] = "tumor",
    by: Annotated[
        list[str] | None, typer.Option(help="Column of manifest or CSV that makes subgroups; may be given again.")
    ] = None,
    split: Annotated[str, typer.Option(help="Slides to report on; those of `val` fix the threshold.")] = "test",
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Call slides positive from here on, in place of `val`.")
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option(help="Column with negative, itc, micro or macro: stages (pN) by the maps of a tumour model."),
    ] = None,
    legacy_spacing: Annotated[
        bool, typer.Option("--legacy-spacing", help="FROC with 0.243 µm/px for all slides, as the challenge's script.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write all figures and curves to this file (JSON); a run has evaluation.json.")
    ] = None,
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Measure predictions: slides with intervals, calibration, subgroups, lesions (FROC of CAMELYON16), patients (pN).

    Threshold and temperature come from the validation slides, never from those reported on. Columns `centre`, `center`,
    `site` and `scanner` make subgroups by themselves.
    """
    with explained(debug=debug):
        from wsi_ips.evaluation.prediction_table import TableQuestion
        from wsi_ips.pipeline import Run
        from wsi_ips.pipeline.evaluate_run import evaluate_run
        from wsi_ips.pipeline.external_predictions import evaluate_files
        from wsi_ips.provenance import atomic_write_json

        others = predictions is not None or detections is not None
        if (recipe is None) != others:
            raise RecipeError("give either a recipe, or --predictions FILE, --detections FOLDER or both")
        if recipe is None:
            found = evaluate_files(
                TableQuestion(positive, by or (), split, threshold),
                predictions=predictions,
                detections=detections,
                manifest=manifest,
                legacy_spacing=legacy_spacing,
            )
            target = output
        else:
            if manifest is not None:
                raise RecipeError("--manifest is for --predictions and --detections; a recipe names its own")
            with Run.open(load_recipe(recipe, parse_overrides(settings))) as run:
                found = evaluate_run(
                    run,
                    by=by or (),
                    split=split,
                    threshold=threshold,
                    nodes=nodes,
                    legacy_spacing=legacy_spacing,
                )
                target = output or run.folder.evaluation
        print_evaluation(found)
        if target is not None:
            atomic_write_json(target, found.as_json())
            out.print(f"all figures: {escape(str(target))}", soft_wrap=True)


@app.command()
def report(recipe: RecipeFile, settings: Overrides = None, debug: Debug = False) -> None:
    """Make the report anew from what is stored: figures, worklist, failures, training, model card.

    `wsi-ips run` makes it too. One file, nothing from elsewhere: it can be handed on as it is.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline import Run
        from wsi_ips.pipeline.report_stage import report_stage

        with Run.open(load_recipe(recipe, parse_overrides(settings)), Bars()) as run:
            report_stage(run)
        out.print(f"report: {escape(str(run.folder.report))}", soft_wrap=True)


def print_evaluation(found: Evaluation) -> None:
    """Tables of what there is, then what could not be computed."""
    if found.slides:
        _print_slides(found.slides)
    for task in found.tasks:
        _print_task(task)
    if found.localisation:
        _print_localisation(found.localisation)
    if found.tissue:
        out.print(
            f"annotated tumour: {found.tissue['in_tissue']:.1%} of its area is in the tissue mask, "
            f"{found.tissue['in_tiles']:.1%} in tiles; {found.tissue['lost']:.0f} of {found.tissue['lesions']:.0f} "
            "lesions are lost before any learning (all slides)",
            soft_wrap=True,
        )
    if found.patients:
        _print_patients(found.patients)
    for note in found.notes:
        out.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)


def _print_slides(slides: SlideEvaluation) -> None:
    table = Table("slides", "value", "95 % interval", box=None, pad_edge=False)
    for name, found in slides.metrics.items():
        interval = f"{found.low:.3f} to {found.high:.3f}  {found.method}"
        table.add_row(name.replace("_", " "), f"{found.value:.3f}", interval)
    out.print(table)
    c = slides.confusion
    out.print(
        f"threshold {slides.threshold:.3f} ({slides.threshold_from}): {c.true_positive} of "
        f"{c.true_positive + c.false_negative} positive slides found, {c.false_positive} of "
        f"{c.false_positive + c.true_negative} others called too",
        soft_wrap=True,
    )
    if slides.calibration:
        out.print(f"calibration: slope {slides.calibration.slope:.2f}, intercept {slides.calibration.intercept:+.2f}")
    if slides.temperature and slides.calibrated:
        out.print(
            f"with temperature {slides.temperature:.2f} of the validation slides: slope {slides.calibrated.slope:.2f}, "
            f"intercept {slides.calibrated.intercept:+.2f}",
            soft_wrap=True,
        )
    if slides.subgroups:
        table = Table("group", "slides", "AUC", "95 % interval", "sensitivity", "specificity", box=None, pad_edge=False)
        for group in slides.subgroups:
            table.add_row(
                escape(f"{group.name} = {group.value}"),
                f"{group.positives} + {group.negatives}",
                f"{group.auc.value:.3f}" if group.auc else "",
                f"{group.auc.low:.3f} to {group.auc.high:.3f}" if group.auc else "",
                _with_interval(group.sensitivity),
                _with_interval(group.specificity),
            )
        out.print(table)


def _print_task(task: TaskEvaluation) -> None:
    table = Table(f"task {escape(task.name)}", "slides", "AUC", "found", "others right", box=None, pad_edge=False)
    for c in task.classes:
        slides = f"{c.positives} + {c.negatives}"
        table.add_row(
            escape(c.name), slides, _with_interval(c.auc), _with_interval(c.found), _with_interval(c.others_right)
        )
    out.print(table)
    kappa = "" if task.kappa is None else f", kappa {task.kappa:.3f}"
    out.print(f"answered wholly right: {_with_interval(task.accuracy)} of {task.slides} slides{kappa}", soft_wrap=True)


def _print_localisation(found: Localisation) -> None:
    table = Table("tumour found where it is", "value", "of", box=None, pad_edge=False)
    for name, curve in (
        ("peaks", found.lesions_by_peaks),
        ("components", found.lesions_by_components),
        ("detections given", found.lesions_given),
    ):
        if curve:
            ends = "" if curve.interval is None else f" ({curve.interval[0]:.3f} to {curve.interval[1]:.3f})"
            table.add_row(f"FROC, {name}", f"{curve.score:.3f}{ends}", _sensitivities(curve))
    for name, tiles in (("probability", found.tile_probability), ("attention", found.tile_attention)):
        if tiles:
            share = f"{tiles.tumour_tiles} of {tiles.tiles} tiles; PR-AUC {tiles.pr_auc:.3f}"
            table.add_row(f"tile AUC, {name}", f"{tiles.auc:.3f}", share)
    tumour, other = f"{found.tumour_slides} slides with tumour tiles", f"{found.other_slides} slides without tumour"
    if found.tumour_slides:
        table.add_row("highest tile is tumour", _share(found.pointing), tumour)
        sizes = "; ".join(f"{s.size} {s.selected} of {s.slides}" for s in found.by_size)
        table.add_row("a tumour tile was kept", _share(found.selection_recall), f"{tumour} ({sizes})")
    if found.false_alarm_mm2 is not None:
        table.add_row("called tumour by mistake", f"{found.false_alarm_mm2:.2f} mm²", f"mean of {other}")
    if found.effective_tiles is not None:
        table.add_row("attention is spread over", f"{found.effective_tiles:.1f} tiles", "exp of its entropy, mean")
    out.print(table)


def _print_patients(found: Patients) -> None:
    kappa = "undefined" if found.kappa is None else f"{found.kappa:.3f}"
    out.print(f"pN stage: {found.right} of {len(found.patients)} patients right, quadratic kappa {kappa}")


def _sensitivities(curve: Froc) -> str:
    from wsi_ips.evaluation.froc import TARGETS

    found = ", ".join(f"{curve.at(target):.2f} at {target:g}" for target in TARGETS)
    return f"{curve.lesions} lesions on {curve.slides} slides: {found} false positives per slide"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _with_interval(found: Interval | None) -> str:
    return "" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
