"""The command ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from wsi_ips.cli.app import Debug, Overrides, app, parse_overrides
from wsi_ips.cli.console import explained, out
from wsi_ips.config import load_recipe
from wsi_ips.errors import RecipeError

if TYPE_CHECKING:
    from wsi_ips.evaluation import Froc, SlideEvaluation
    from wsi_ips.pipeline.evaluate import Evaluation, Localisation, Patients


@app.command()
def evaluate(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Recipe of a run with predictions.", show_default=False)
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Instead of a run: CSV with slide_id, label, probability (and split, to fix the threshold)."),
    ] = None,
    positive: Annotated[str, typer.Option(help="With --predictions: the label that counts as positive.")] = "tumor",
    by: Annotated[
        list[str] | None, typer.Option(help="Column of manifest or CSV that makes subgroups; may be given again.")
    ] = None,
    split: Annotated[str, typer.Option(help="Slides to report on; those of `val` fix the threshold.")] = "test",
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Call slides positive from here on, in place of `val`.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write all figures and curves to this file (JSON); a run has evaluation.json.")
    ] = None,
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Measure predictions: slides with intervals, calibration, subgroups, lesions (FROC of CAMELYON16), patients (pN).

    Threshold and temperature come from the validation slides, never from those reported on.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline import Run
        from wsi_ips.pipeline.evaluate import evaluate_run
        from wsi_ips.pipeline.evaluate_table import evaluate_table
        from wsi_ips.provenance import atomic_write_json

        if (recipe is None) == (predictions is None):
            raise RecipeError("give either a recipe or --predictions FILE")
        if predictions is not None:
            found = evaluate_table(predictions, positive=positive, by=by or (), split=split, threshold=threshold)
            target = output
        else:
            assert recipe is not None
            with Run.open(load_recipe(recipe, parse_overrides(settings))) as run:
                found = evaluate_run(run, by=by or (), split=split, threshold=threshold)
                target = output or run.folder.evaluation
        print_evaluation(found)
        if target is not None:
            atomic_write_json(target, found.as_json())
            out.print(f"all figures: {escape(str(target))}", soft_wrap=True)


def print_evaluation(found: Evaluation) -> None:
    """Tables of what there is, then what could not be computed."""
    if found.slides:
        _print_slides(found.slides)
    if found.localisation:
        _print_localisation(found.localisation)
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
                _share(group.sensitivity),
                _share(group.specificity),
            )
        out.print(table)


def _print_localisation(found: Localisation) -> None:
    table = Table("tumour found where it is", "value", "of", box=None, pad_edge=False)
    for name, curve in (("peaks", found.lesions_by_peaks), ("components", found.lesions_by_components)):
        if curve:
            table.add_row(f"FROC, {name}", f"{curve.score:.3f}", _sensitivities(curve))
    tumour, other = f"{found.tumour_slides} slides with tumour tiles", f"{found.other_slides} slides without tumour"
    table.add_row("highest tile is tumour", _share(found.pointing), tumour)
    table.add_row("a tumour tile was kept", _share(found.selection_recall), tumour)
    area = "" if found.false_alarm_mm2 is None else f"{found.false_alarm_mm2:.2f} mm²"
    table.add_row("called tumour by mistake", area, f"mean of {other}")
    out.print(table)


def _print_patients(found: Patients) -> None:
    right = int((found.table["stage"] == found.table["predicted"]).sum())
    kappa = "undefined" if found.kappa is None else f"{found.kappa:.3f}"
    out.print(f"pN stage: {right} of {len(found.table)} patients right, quadratic kappa {kappa}")


def _sensitivities(curve: Froc) -> str:
    from wsi_ips.evaluation.froc import TARGETS

    found = ", ".join(f"{curve.at(target):.2f} at {target:g}" for target in TARGETS)
    return f"{curve.lesions} lesions on {curve.slides} slides: {found} false positives per slide"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
