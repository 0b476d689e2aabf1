"""Cross-validation: a run per fold on the same tiles, out-of-fold predictions, and an ensemble for all other slides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wsi_ips.config import Recipe
from wsi_ips.errors import EvaluationError, RecipeError
from wsi_ips.evaluation.classification import Interval
from wsi_ips.evaluation.slide_evaluation import Scored, evaluate_slides
from wsi_ips.evaluation.summary import Evaluation
from wsi_ips.manifest.splits import read_splits, write_splits
from wsi_ips.pipeline.evaluate_run import evaluate_run
from wsi_ips.pipeline.progress import Progress, Silent
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.split_cohort import SplitPlan, split_cohort
from wsi_ips.pipeline.stages import run_stage, tile
from wsi_ips.provenance import atomic_write_json, atomic_write_text
from wsi_ips.tables import read_table, table_text

FOLDS_NAME, FIGURES_NAME = "folds.json", "cross_validation.json"
OUT_OF_FOLD_NAME, ENSEMBLE_NAME = "out_of_fold.csv", "ensemble.csv"
VALIDATED = 0.1  # of the slides that a fold does not test, where the folds are made here


@dataclass(frozen=True)
class FoldFigures:
    """Figures of one fold."""

    fold: int  # from 0
    tested: int  # test slides with a label
    evaluation: Evaluation | None  # of the test slides, threshold from the validation slides; None if nothing is known
    failed: int  # slides that failed

    @property
    def auc(self) -> float | None:
        """Area under the ROC curve of the test slides, None where they are of one class."""
        slides = self.evaluation.slides if self.evaluation else None
        return slides.metrics["auc"].value if slides and "auc" in slides.metrics else None


@dataclass(frozen=True)
class CrossValidation:
    """Figures over all folds."""

    folds: tuple[FoldFigures, ...]
    # Of the out-of-fold scores of all slides together, None where they are of one class. Scores of different models
    # are on different scales, so the mean over folds is the safer figure.
    pooled: dict[str, Interval] | None
    out_of_fold: Path  # a row per tested slide
    ensemble: Path | None  # mean of all models for slides in no part; None without any

    @property
    def auc_mean_and_spread(self) -> tuple[float, float] | None:
        """Mean and standard deviation (of a sample) over the folds that have an AUC."""
        known = [fold.auc for fold in self.folds if fold.auc is not None]
        return (float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0) if known else None

    @property
    def failed(self) -> int:
        """Slides that failed in any fold, the worst fold's number."""
        return max(fold.failed for fold in self.folds)

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``cross_validation.json``."""
        spread = self.auc_mean_and_spread
        return {
            "auc": {"mean": spread[0], "sd": spread[1]} if spread else None,
            "pooled": {name: asdict(found) for name, found in self.pooled.items()} if self.pooled else None,
            "folds": [
                {
                    "fold": fold.fold,
                    "tested": fold.tested,
                    "auc": fold.auc,
                    "failed": fold.failed,
                    "evaluation": fold.evaluation.as_json() if fold.evaluation else None,
                }
                for fold in self.folds
            ],
        }


def cross_validate(
    recipe: Recipe, *, folds: int | None = None, by: str | None = None, progress: Progress | None = None
) -> CrossValidation:
    """Train and test once per fold; skip what is up to date.

    The tiles are made once, in the recipe's run folder; each fold is a separate run below it (``fold_0`` ...), with
    model, predictions and heatmaps where other commands find them. Folds come from ``split.file``; without it
    ``folds`` of them are made here and kept as ``folds.json``: patients and copies stay together, labels in proportion.
    ``by`` is the manifest column of the centre: a fold then tests whole centres.
    """
    watcher = progress or Silent()
    recipe = _with_folds(recipe, folds, by, watcher)
    assert recipe.split.file is not None
    count = len(read_splits(recipe.split.file).folds)
    with Run.open(recipe, watcher, writes=True) as run:
        tile(run)
        found = [_run_fold(recipe, k, watcher) for k in range(count)]
    tables = []
    for fold in range(count):
        with Run.open(fold_recipe(recipe, fold)) as run:
            table = read_table(run.folder.predictions, "predictions", EvaluationError).frame()
        table.insert(1, "fold", fold)
        tables.append(table)
    tested, averaged = pd.concat([t[t["split"] == "test"] for t in tables]), _ensemble(tables)
    out_of_fold, ensemble = recipe.output / OUT_OF_FOLD_NAME, recipe.output / ENSEMBLE_NAME
    _write(out_of_fold, tested)
    if not averaged.empty:
        _write(ensemble, averaged)
    result = CrossValidation(tuple(found), _pooled(recipe, tested), out_of_fold, None if averaged.empty else ensemble)
    atomic_write_json(recipe.output / FIGURES_NAME, result.as_json())
    return result


def fold_recipe(recipe: Recipe, fold: int) -> Recipe:
    """Return the recipe of one fold: its own run folder, the tiles of the whole."""
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-fold{fold}",
            "output": recipe.output / f"fold_{fold}",
            "split": recipe.split.model_copy(update={"fold": fold}),
            "tiles": recipe.tiles.model_copy(update={"shared": recipe.tiles.shared or recipe.output}),
            "features": recipe.features.model_copy(
                update={"location": recipe.features.location or RunFolder(recipe.output).features}
            ),
            "predict": recipe.predict.model_copy(update={"splits": ("val", "test")}),
        }
    )


def _with_folds(recipe: Recipe, folds: int | None, by: str | None, progress: Progress) -> Recipe:
    """Return the recipe with a file of folds, created if the recipe names none."""
    if recipe.split.file is not None:
        if folds is not None or by is not None:
            raise RecipeError("key `split.file` already names the folds; leave out `--folds` and `--by`, or the key")
        return recipe
    path = recipe.output / FOLDS_NAME
    if path.exists():
        made = read_splits(path)
        if folds not in (None, len(made.folds)) or (by is not None and made.settings.get("by") != by):
            raise RecipeError(
                f"{path}: {len(made.folds)} folds of an earlier call (by {made.settings.get('by') or 'patient'}); "
                "ask for the same, or give another `output`"
            )
    elif folds is None:
        raise RecipeError("no folds: give `--folds`, or name a file of `wsi-ips split --folds` as `split.file`")
    else:
        with Run.open(recipe, progress) as run:
            manifest = run.recipe.manifest
        fractions, stratify = (1 - VALIDATED, VALIDATED, 0.0), (recipe.labels.column,)
        plan = SplitPlan(fractions=fractions, folds=folds, by=by, stratify=stratify, seed=recipe.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_splits(path, split_cohort(manifest, plan, progress=progress).splits)
    return recipe.model_copy(update={"split": recipe.split.model_copy(update={"file": path})})


def _run_fold(recipe: Recipe, fold: int, progress: Progress) -> FoldFigures:
    own = fold_recipe(recipe, fold)
    progress.note(f"fold {fold}: {own.output}")
    for stage in ("train", "predict"):
        run_stage(own, stage, progress)
    evaluation = None
    with Run.open(own, progress) as run:
        tested = sum(r.split == "test" and run.slides.target(r) is not None for r in run.slides.records)
        try:
            evaluation = evaluate_run(run.predictions)
        except EvaluationError as error:
            progress.note(f"fold {fold}: {error}")
        return FoldFigures(fold, tested, evaluation, run.states.count("failed"))


def _ensemble(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return mean and sample standard deviation of each probability over models, for slides in no part of any fold."""
    rows = pd.concat([table[table["split"] == ""] for table in tables])
    if rows.empty:
        return rows
    columns = [name for name in map(str, rows) if name.startswith("probability_") or "_probability_" in name]
    grouped = rows.astype(dict.fromkeys(columns, float)).groupby("slide_id", sort=False)[columns]
    spread = grouped.std().fillna(0.0).add_prefix("sd_")
    return grouped.mean().join(spread).round(6).assign(models=grouped.size()).reset_index()


def _pooled(recipe: Recipe, rows: pd.DataFrame) -> dict[str, Interval] | None:
    task = recipe.labels.tasks[0]
    known = rows[rows["label"] != ""]
    truth = [task.is_positive(task.parse(text)) for text in known["label"]]
    if len(set(truth)) < 2:
        return None
    score = known[f"probability_{task.classes[-1]}"].to_numpy(np.float64)
    return evaluate_slides(Scored(np.array(truth, np.int64), score)).metrics


def _write(path: Path, table: pd.DataFrame) -> None:
    atomic_write_text(path, table_text(list(table), table.itertuples(index=False)))


def figures_of(folds: Sequence[FoldFigures]) -> Iterator[tuple[str, str, str]]:
    """Yield a table row per fold: fold, slides tested, AUC with its interval."""
    for fold in folds:
        slides = fold.evaluation.slides if fold.evaluation else None
        auc = slides.metrics.get("auc") if slides else None
        text = f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})" if auc else "one class only"
        yield str(fold.fold), str(fold.tested), text
