"""Commands around a model: ``run``, ``train``, ``cross-validate`` and ``predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from wsi_ips.cli.console import Bars, exit_partial_if, out, say
from wsi_ips.cli.print_results import print_cross_validation, print_predictions, print_summary
from wsi_ips.cli.print_slides import print_status
from wsi_ips.cli.program import (
    MODEL,
    Checkpoint,
    Overrides,
    RecipeFile,
    Scheduler,
    Slides,
    Workers,
    checkpoint_of,
    choice,
    command,
    overrides_of,
    read_recipe,
)
from wsi_ips.cluster.machine import Launch
from wsi_ips.config import Recipe
from wsi_ips.errors import RecipeError
from wsi_ips.training.guessing import warning_of_file

BEFORE = {
    "tile": ("tile",),
    "features": ("features",),
    "train": ("train",),
    "predict": ("train", "predict"),
    "heatmap": ("train", "predict", "heatmap"),
}  # stages that `--until` can name, and what to run for them; training runs the stages it needs
OF_SLIDES = ("features", "predict", "heatmap")  # stages that can work on some slides only
RECIPES = (".yaml", ".yml")


@command(
    MODEL,
    "wsi-ips run recipe.yaml",
    "wsi-ips run recipe.yaml --until features slide_007",
    "wsi-ips run recipe.yaml --retry --reason memory --set compute.worker_memory_gb=16",
    name="run",
)
def run_stages(
    recipe: RecipeFile,
    slides: Slides = None,
    until: Annotated[str | None, choice(BEFORE, "--until", text="Stop after this stage.")] = None,
    retry: Annotated[bool, Option("--retry", help="Retry failed slides only, e.g. after a repair.")] = False,
    reason: Annotated[str | None, Option(metavar="TEXT", help="With --retry: slides whose reason contains it.")] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    settings: Overrides = None,
) -> None:
    """Run all stages: tile, train, predict, heatmap, report. Run it again to continue; nothing is done twice.

    Stage `features` stores the encoder's embedding of every tile, for training with `model.input: features`. --retry
    tiles failed slides again; those that failed later are worked on by the next run. Exit code 3 if slides failed.
    """
    loaded = read_recipe(recipe, settings, {"compute.scheduler": scheduler, "compute.workers": workers})
    if reason is not None and not retry:
        raise RecipeError("--reason: only with --retry")
    if slides and not retry and until not in OF_SLIDES:
        raise RecipeError(f"{slides[0]}: slides can only be named with --retry or --until {', '.join(OF_SLIDES)}")
    if not Launch.of().is_first:
        if not retry and until not in ("tile", "features"):
            from wsi_ips.pipeline.stages import train_along

            train_along(loaded)  # joins a training led by the first process
    elif retry:
        _retry(loaded, slides or [], reason or "")
    elif until:
        _run_stages(loaded, BEFORE[until], slides or [])
    else:
        from wsi_ips.pipeline import run_pipeline

        outcome = run_pipeline(loaded, Bars())
        print_summary(outcome)
        exit_partial_if(outcome.failed)


@command(
    MODEL,
    "wsi-ips train recipe.yaml --set training.epochs=30",
    "wsi-ips train recipe.yaml --encoder-only encoder.safetensors",
    "torchrun --nproc-per-node 4 -m wsi_ips train recipe.yaml",
)
def train(
    recipe: RecipeFile,
    encoder_only: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Only train the encoder, on tiles without labels (self-supervision), and write its weights to this "
            "file for model.weights.",
        ),
    ] = None,
    splits: Annotated[
        list[str] | None, Option("--split", help="With --encoder-only: split to learn from, repeatable; default train.")
    ] = None,
    settings: Overrides = None,
) -> None:
    """Train on the slides of split `train`, end to end on pixels; slides that are not tiled yet are tiled first."""
    loaded = read_recipe(recipe, settings)
    if splits and encoder_only is None:
        raise RecipeError("--split: only with --encoder-only")
    if encoder_only is not None:
        from wsi_ips.pipeline.stages import train_encoder_file

        train_encoder_file(loaded, encoder_only, splits=splits or ("train",), progress=Bars())
    elif Launch.of().is_first:
        _run_stages(loaded, ("train",), [])
    else:
        from wsi_ips.pipeline.stages import train_along

        train_along(loaded)


@command(MODEL, "wsi-ips cross-validate recipe.yaml --folds 5")
def cross_validate(
    recipe: RecipeFile,
    folds: Annotated[int | None, Option(min=2, help="Number of folds; default: as in `split.file`.")] = None,
    by: Annotated[str | None, Option(metavar="COLUMN", help="Column of the centre: test on whole centres.")] = None,
    settings: Overrides = None,
) -> None:
    """Train and test once per fold: every slide is predicted by a model that has not seen its patient.

    Tiles are made once. Each fold is a run in the recipe's output folder (fold_0 ...), next to out_of_fold.csv,
    ensemble.csv (mean of all models for slides in no split) and cross_validation.json. Run it again to continue.
    """
    from wsi_ips.pipeline.cross_validation import cross_validate as run_folds

    found = run_folds(read_recipe(recipe, settings), folds=folds, by=by, progress=Bars())
    print_cross_validation(found)
    exit_partial_if(found.failed)


@command(
    MODEL,
    "wsi-ips predict new-slides/ --checkpoint runs/demo/model --output runs/new",
    "wsi-ips predict recipe.yaml slide_007",
)
def predict(
    targets: Annotated[
        list[str],
        Argument(
            metavar="PATH",
            help="Slides: files, folders, URLs or a manifest (.csv), with --checkpoint. Or a recipe (.yaml), and "
            "slide_ids of its manifest; default: those of predict.splits.",
        ),
    ],
    checkpoint: Checkpoint = None,
    output: Annotated[Path | None, Option("--output", "-o", help="Run folder, new or of an earlier call.")] = None,
    heatmaps: Annotated[bool | None, Option(help="Draw maps; default: without a recipe.", show_default=False)] = None,
    mpp: Annotated[float | None, Option(help="Without a recipe: µm per level-0 pixel of slides that lack it.")] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    settings: Overrides = None,
) -> None:
    """Label slides and score every tile with a trained model.

    Without a recipe the model determines scale, tissue, tiles, temperature and threshold. All other commands accept
    the run folder: view, status, evaluate ... Slides in parallel share out the GPUs. Run it again to continue.
    """
    from wsi_ips.pipeline.stages import predict_slides

    options: dict[str, Any] = {"compute.scheduler": scheduler, "compute.predict_workers": workers}
    if workers is None and scheduler:
        options["compute.predict_workers"] = 1
    by_recipe = Path(targets[0]).suffix.lower() in RECIPES
    if by_recipe:
        if mpp is not None:
            raise RecipeError("--mpp: with a recipe, fill column `mpp` of the manifest")
        options |= {"predict.checkpoint": checkpoint_of(checkpoint), "output": output and str(output.resolve())}
        recipe, names = read_recipe(Path(targets[0]), settings, options), targets[1:]
    else:
        recipe, names = _of_bundle(targets, checkpoint, output, overrides_of(settings, options), mpp)
    draw = not by_recipe if heatmaps is None else heatmaps
    found = predict_slides(recipe, names, heatmaps=draw, progress=Bars())
    print_predictions(found)
    exit_partial_if(found.failed)


def _run_stages(recipe: Recipe, stages: Sequence[str], slides: Sequence[str]) -> None:
    from wsi_ips.pipeline import run_stage

    for stage in stages:
        run = run_stage(recipe, stage, Bars(), slides=slides if stage in OF_SLIDES else [])
    print_status(run.states, only_problems=True)
    if "train" in stages and recipe.predict.checkpoint is None:
        warning = warning_of_file(run.folder.metrics, recipe.training, recipe.model)
        if warning:
            say("yellow", "warning", warning)
    exit_partial_if(run.states.count("failed"))


def _retry(recipe: Recipe, slides: Sequence[str], reason: str) -> None:
    from wsi_ips.pipeline import Run
    from wsi_ips.pipeline.stages import retry

    with Run.open(recipe, Bars(), writes=True) as run:
        done = retry(run, reason, slides)
    out.print(f"{len(done.tiled)} slides tiled again, {len(done.restored)} ready for the stage that failed")
    print_status(run.states, only_problems=True)
    exit_partial_if(run.states.count("failed"))


def _of_bundle(
    targets: Sequence[str], checkpoint: Path | None, output: Path | None, values: dict[str, Any], mpp: float | None
) -> tuple[Recipe, list[str]]:
    """Make the recipe of a call without a recipe, and list its slides."""
    from wsi_ips.pipeline.new_slides import bundle_folder, default_output, new_slides

    if checkpoint is None:
        raise RecipeError(
            f"{targets[0]}: to predict slides name a model with --checkpoint FOLDER, such as runs/demo/model; a recipe "
            "ends in .yaml"
        )
    bundle = bundle_folder(checkpoint)
    found = new_slides(targets, bundle, output or default_output(bundle), overrides=values, mpp=mpp)
    for text in found.notes:
        out.print(text, soft_wrap=True, markup=False)
    return found.recipe, list(found.names)
