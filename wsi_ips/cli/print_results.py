"""Print results of commands: a run, predictions, cross-validation, an evaluation, drawn scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from wsi_ips.cli.console import out, plain_table, put, say
from wsi_ips.cli.print_slides import COLOURS, MOST_ROWS, print_reasons, print_status

if TYPE_CHECKING:
    from wsi_ips.evaluation.calibration import Calibration
    from wsi_ips.evaluation.classification import Interval
    from wsi_ips.evaluation.froc import Froc
    from wsi_ips.evaluation.localisation import Localisation
    from wsi_ips.evaluation.slide_evaluation import SlideEvaluation, TaskEvaluation
    from wsi_ips.evaluation.summary import Evaluation
    from wsi_ips.inference.slide_scores import Verdict
    from wsi_ips.labels import Task
    from wsi_ips.pipeline.cross_validation import CrossValidation
    from wsi_ips.pipeline.slide_predictions import PredictedSlide
    from wsi_ips.pipeline.stages import Outcome, Predictions
    from wsi_ips.results.draw_scores import DrawnMap

MOST_PICTURES = 10  # above it, only the folder of the maps is printed


def print_summary(outcome: Outcome) -> None:
    """Print the figures of a run and the page to open."""
    from wsi_ips.evaluation.summary import headline

    print_status(outcome.states, only_problems=True)
    table = plain_table()
    for name, value, note in headline(outcome.summary):
        table.add_row(f"[bold]{escape(name)}[/]", escape(f"{value}  {note}".strip()))
    out.print(table)
    put(f"[bold]report[/]  {escape(str(outcome.report))}")
    if outcome.summary.get("training_warning"):
        say("yellow", "warning", outcome.summary["training_warning"])


def print_predictions(found: Predictions) -> None:
    """Print a line per slide, why some have no prediction, how to read the table, and where the files are."""
    tasks = found.run.recipe.labels.tasks
    table = plain_table("slide", *_headings(tasks), "tiles", "tissue not analysed")
    for slide in found.slides[:MOST_ROWS]:
        table.add_row(*_cells(slide, tasks))
    out.print(table)
    print_reasons([(slide.slide_id, slide.reason) for slide in found.slides])
    if len(found.slides) > MOST_ROWS:
        out.print(f"... and {len(found.slides) - MOST_ROWS} more")
    for slide in found.slides:
        if slide.not_analysed is not None and slide.not_analysed.share_flagged > 0:
            say("yellow", slide.slide_id, f"not analysed: {slide.not_analysed}")
    for line in _readings(tasks, found.calibration):
        put(escape(line))
    pictures = [slide.picture for slide in found.slides if slide.picture]
    for picture in pictures if len(pictures) <= MOST_PICTURES else [pictures[0].parent]:
        put(f"map: {escape(str(picture))}")
    put(f"predictions: {escape(str(found.run.folder.predictions))}")
    put(f"look at them: wsi-ips view {escape(str(found.run.folder.root))}")
    out.print("Research use only; not for diagnosis.")


def _headings(tasks: Sequence[Task]) -> Iterator[str]:
    for task in tasks:
        name = "" if task.name == "label" else f"{task.name}: "
        yield f"{name}probability of {task.classes[-1]}" if _is_binary(task) else f"{name}probability"
        yield f"{name}call"


def _cells(slide: PredictedSlide, tasks: Sequence[Task]) -> Iterator[str]:
    yield escape(slide.slide_id)
    for number, task in enumerate(tasks):
        if slide.verdicts:
            yield _probability(task, slide.verdicts[number])
            yield escape(slide.verdicts[number].answer)
        else:
            colour = COLOURS[slide.state]  # type: ignore[index]
            yield ""
            yield "" if number else f"[{colour}]{slide.state}[/]"
    yield "" if slide.tiles is None else str(slide.tiles)
    yield "" if slide.not_analysed is None else f"{slide.not_analysed.share:.1%}"


def _probability(task: Task, verdict: Verdict) -> str:
    from wsi_ips.results.overlay import probability_text

    if _is_binary(task):
        return probability_text(verdict.probability[-1])
    if task.kind == "single":
        return probability_text(max(verdict.probability))
    return ", ".join(f"{c} {probability_text(p)}" for c, p in zip(task.classes, verdict.probability, strict=True))


def _is_binary(task: Task) -> bool:
    return task.kind == "single" and task.width == 2


def _readings(tasks: Sequence[Task], calibration: Calibration) -> Iterator[str]:
    """Yield how to read the probabilities of each task."""
    for task, entry in zip(tasks, calibration.tasks, strict=True):
        name = "" if task.name == "label" else f"{task.name}: "
        if entry.decision == "tiles":
            yield f"{name}decided by the tiles with the strongest evidence for a class (`predict.decision: tiles`)"
        if entry.note:
            yield f"{name}{entry.note}"
        if entry.slides and entry.temperature != 1:
            yield f"{name}probabilities at temperature {entry.temperature:.3g}, from {entry.slides} validation slides"
        if _is_binary(task):
            yield f"{name}`{task.classes[-1]}` is called at a probability of {entry.thresholds[0]:.3f} or more"


def print_cross_validation(found: CrossValidation) -> None:
    """Print the figures per fold and over all folds, and where the files are."""
    from wsi_ips.pipeline.cross_validation import figures_of

    table = plain_table("fold", "slides tested", "AUC (95 % interval)")
    for row in figures_of(found.folds):
        table.add_row(*row)
    out.print(table)
    spread = found.auc_mean_and_spread
    if spread:
        out.print(f"AUC over folds: {spread[0]:.3f}, standard deviation {spread[1]:.3f}")
    if found.pooled and "auc" in found.pooled:
        out.print(f"AUC of all out-of-fold scores together: {_with_interval(found.pooled['auc'])}")
    put(f"out-of-fold predictions: {escape(str(found.out_of_fold))}")
    if found.ensemble:
        put(f"mean of all models for slides in no split: {escape(str(found.ensemble))}")


def print_drawn(drawn: Sequence[DrawnMap], output: Path) -> None:
    """Print a line per map, and where they are."""
    for one in drawn:
        how = "0 to 1" if one.kind == "probability" else "rank"
        test = "" if one.alignment is None else f", alignment {one.alignment:.2f}"
        package = "" if one.package is None else f", {one.package.name}/"
        put(f"[bold]{escape(one.column)}[/] {how}{test}: {escape(one.path.name + package)}")
    put(f"pictures and packages: {output}")


def print_evaluation(found: Evaluation) -> None:
    """Print a table of each result, then what could not be computed."""
    if found.slides:
        _print_slides(found.slides)
    for task in found.tasks:
        _print_task(task)
    if found.localisation:
        _print_localisation(found.localisation)
    if found.tissue:
        put(
            f"annotated tumour: {found.tissue['in_tissue']:.1%} of its area is in the tissue mask, "
            f"{found.tissue['in_tiles']:.1%} in tiles; {found.tissue['lost']:.0f} of {found.tissue['lesions']:.0f} "
            "lesions are lost before any learning (all slides)"
        )
    if found.patients:
        kappa = _share(found.patients.kappa) or "undefined"
        right = f"{found.patients.right} of {len(found.patients.patients)} patients right"
        out.print(f"pN stage: {right}, quadratic kappa {kappa}")
    for note in found.notes:
        put(f"[yellow]{escape(note)}[/]")


def _print_slides(slides: SlideEvaluation) -> None:
    table = plain_table("slides", "value", "95 % interval")
    for name, found in slides.metrics.items():
        interval = f"{found.low:.3f} to {found.high:.3f}  {found.method}"
        table.add_row(name.replace("_", " "), f"{found.value:.3f}", interval)
    out.print(table)
    c = slides.confusion
    put(
        f"threshold {slides.threshold:.3f} ({slides.threshold_from}): {c.true_positive} of "
        f"{c.true_positive + c.false_negative} positive slides found, {c.false_positive} of "
        f"{c.false_positive + c.true_negative} negative slides called positive"
    )
    if slides.calibration:
        out.print(f"calibration: slope {slides.calibration.slope:.2f}, intercept {slides.calibration.intercept:+.2f}")
    if slides.temperature and slides.calibrated:
        put(
            f"with temperature {slides.temperature:.2f} of the validation slides: slope {slides.calibrated.slope:.2f}, "
            f"intercept {slides.calibrated.intercept:+.2f}"
        )
    if slides.subgroups:
        table = plain_table("group", "slides", "AUC (95 % interval)", "sensitivity", "specificity")
        for group in slides.subgroups:
            table.add_row(
                escape(f"{group.name} = {group.value}"),
                f"{group.positives} + {group.negatives}",
                _with_interval(group.auc),
                _with_interval(group.sensitivity),
                _with_interval(group.specificity),
            )
        out.print(table)


def _print_task(task: TaskEvaluation) -> None:
    table = plain_table(f"task {escape(task.name)}", "slides", "AUC", "sensitivity", "specificity")
    for c in task.classes:
        figures = (_with_interval(figure) for figure in (c.auc, c.found, c.others_right))
        table.add_row(escape(c.name), f"{c.positives} + {c.negatives}", *figures)
    out.print(table)
    kappa = "" if task.kappa is None else f", kappa {task.kappa:.3f}"
    put(f"all classes right: {_with_interval(task.accuracy)} of {task.slides} slides{kappa}")


def _print_localisation(found: Localisation) -> None:
    table = plain_table("localisation of tumour", "value", "of")
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
        table.add_row("false-positive area", f"{found.false_alarm_mm2:.2f} mm²", f"mean of {other}")
    if found.effective_tiles is not None:
        table.add_row("attention is spread over", f"{found.effective_tiles:.1f} tiles", "exp of its entropy, mean")
    out.print(table)


def _sensitivities(curve: Froc) -> str:
    from wsi_ips.evaluation.froc import TARGETS

    found = ", ".join(f"{curve.at(target):.2f} at {target:g}" for target in TARGETS)
    return f"{curve.lesions} lesions on {curve.slides} slides: {found} false positives per slide"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _with_interval(found: Interval | None) -> str:
    return "" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
