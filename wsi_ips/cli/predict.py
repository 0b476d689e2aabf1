"""The command ``predict``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from wsi_ips.cli.app import Checkpoint, Debug, Overrides, app, parse_overrides, pinned, scheduled
from wsi_ips.cli.console import EXIT_PARTIAL, Bars, explained, out
from wsi_ips.cli.tables import COLOURS, MOST_ROWS
from wsi_ips.config import Recipe, load_recipe
from wsi_ips.errors import RecipeError
from wsi_ips.labels import Task

if TYPE_CHECKING:
    from wsi_ips.evaluation.calibration import Calibration
    from wsi_ips.inference.verdict import Verdict
    from wsi_ips.pipeline.prediction.scored import PredictedSlide
    from wsi_ips.pipeline.stages import Predictions

RECIPES = (".yaml", ".yml")
MOST_PICTURES = 10
"""Maps named one by one; of more, their folder."""


@app.command()
def predict(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Slides: files, folders, URLs, or a manifest (.csv); needs --checkpoint. Or a recipe (.yaml, .yml) "
            "and slide_id's of its manifest; none = those of predict.splits.",
        ),
    ],
    checkpoint: Checkpoint = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Run folder for the results; slides of another call may be in it already."),
    ] = None,
    heatmaps: Annotated[
        bool | None,
        typer.Option("--heatmaps/--no-heatmaps", help="Draw the maps; without a recipe they are.", show_default=False),
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="µm per level-0 pixel, for slides whose files do not say it; without a recipe.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Slides predicted at a time, in processes of their own; GPUs are dealt in turn."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Dask scheduler that spreads the slides, e.g. tcp://host:8786, or slurm.")
    ] = None,
    settings: Overrides = None,
    debug: Debug = False,
) -> None:
    """Label slides and score every tile with a trained model.

    Without a recipe everything comes from the model: scale, tissue, tiles, temperature, threshold. The run folder takes
    every other command: view, status, explain, evaluate. Run it again to go on.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline.stages import predict_slides

        spread = [*scheduled(scheduler), *_worker_settings(workers, scheduler)]
        changes = [*(settings or []), *spread]
        watcher = Bars()
        by_recipe = Path(targets[0]).suffix.lower() in RECIPES
        if by_recipe:
            if mpp is not None:
                raise RecipeError("--mpp: with a recipe, fill column `mpp` of the manifest")
            changes += [*pinned(checkpoint), *([f"output={output.resolve()}"] if output else [])]
            recipe, names = load_recipe(Path(targets[0]), parse_overrides(changes)), targets[1:]
        else:
            recipe, names = _of_bundle(targets, checkpoint, output, changes, mpp, watcher)
        draw = not by_recipe if heatmaps is None else heatmaps
        found = predict_slides(recipe, names, heatmaps=draw, progress=watcher)
        print_predictions(found)
        if found.failed:
            raise typer.Exit(EXIT_PARTIAL)


def _worker_settings(workers: int | None, scheduler: str | None) -> list[str]:
    wanted = 1 if workers is None and scheduler else workers
    return [] if wanted is None else [f"compute.predict_workers={wanted}"]


def _of_bundle(
    targets: Sequence[str],
    checkpoint: Path | None,
    output: Path | None,
    settings: list[str],
    mpp: float | None,
    watcher: Bars,
) -> tuple[Recipe, list[str]]:
    """Recipe and slides of a call without a recipe."""
    from wsi_ips.pipeline.prediction.new_slides import bundle_folder, default_output, new_slides

    if checkpoint is None:
        raise RecipeError(
            f"{targets[0]}: to predict slides name a model with --checkpoint FOLDER, such as runs/demo/model; a recipe "
            "ends in .yaml"
        )
    bundle = bundle_folder(checkpoint)
    found = new_slides(targets, bundle, output or default_output(bundle), overrides=parse_overrides(settings), mpp=mpp)
    for text in found.notes:
        watcher.note(text)
    return found.recipe, list(found.names)


def print_predictions(found: Predictions) -> None:
    """A line per slide, why some have no prediction, how to read it, and where it lies."""
    tasks = found.run.recipe.labels.tasks
    table = Table("slide", *_headings(tasks), "tiles", box=None, pad_edge=False)
    for slide in found.slides[:MOST_ROWS]:
        table.add_row(*_cells(slide, tasks))
    out.print(table)
    for slide in found.slides:
        if slide.reason:
            out.print(f"[bold]{escape(slide.slide_id)}[/]: {escape(slide.reason)}", soft_wrap=True)
    if len(found.slides) > MOST_ROWS:
        out.print(f"... and {len(found.slides) - MOST_ROWS} more")
    for line in _readings(tasks, found.calibration):
        out.print(escape(line), soft_wrap=True)
    pictures = [slide.picture for slide in found.slides if slide.picture]
    for picture in pictures if len(pictures) <= MOST_PICTURES else [pictures[0].parent]:
        out.print(f"map: {escape(str(picture))}", soft_wrap=True)
    out.print(f"predictions: {escape(str(found.run.folder.predictions))}", soft_wrap=True)
    out.print(f"look at them: wsi-ips view {escape(str(found.run.folder.root))}", soft_wrap=True)
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


def _probability(task: Task, verdict: Verdict) -> str:
    from wsi_ips.results.frame import probability_text

    if _is_binary(task):
        return probability_text(verdict.probability[-1])
    if task.kind == "single":
        return probability_text(max(verdict.probability))
    return ", ".join(f"{c} {probability_text(p)}" for c, p in zip(task.classes, verdict.probability, strict=True))


def _is_binary(task: Task) -> bool:
    return task.kind == "single" and task.width == 2


def _readings(tasks: Sequence[Task], calibration: Calibration) -> Iterator[str]:
    """How the probabilities came to be, per task."""
    for task, entry in zip(tasks, calibration.tasks, strict=True):
        name = "" if task.name == "label" else f"{task.name}: "
        if entry.decision == "tiles":
            yield f"{name}decided by the tiles that speak most for a class, each alone (`predict.decision: tiles`)"
        if entry.note:
            yield f"{name}{entry.note}"
        if entry.slides and entry.temperature != 1:
            yield f"{name}probabilities at temperature {entry.temperature:.3g}, from {entry.slides} validation slides"
        if _is_binary(task):
            yield f"{name}`{task.classes[-1]}` is called from {entry.thresholds[0]:.3f} on"
