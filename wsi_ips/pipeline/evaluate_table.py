"""Figures of predictions from anywhere: a CSV with a row per slide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation import Scored, evaluate_slides
from wsi_ips.pipeline.evaluate import Evaluation


def evaluate_table(
    path: Path, *, positive: str, by: Sequence[str] = (), split: str = "test", threshold: float | None = None
) -> Evaluation:
    """Figures of anybody's predictions.

    Parameters
    ----------
    path
        CSV with columns ``slide_id``, ``label``, ``probability_POSITIVE`` or ``probability``, and ``split`` where the
        threshold is to come from validation slides. Rows without a label are left out, with a note.
    positive
        The label that counts as positive; all others are negative.
    by
        Columns that make subgroups.
    split
        Part to report on; everything where there is no column ``split``.
    threshold
        Given from outside instead.

    Raises
    ------
    EvaluationError
        A column is missing, a row is not usable (named), or there is nothing to compare.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"predictions {path}: no CSV table ({error})") from error
    column = f"probability_{positive}" if f"probability_{positive}" in table else "probability"
    missing = [name for name in ("slide_id", "label", column, *by) if name not in table]
    if missing:
        raise EvaluationError(
            f"predictions {path}: no column {', '.join(f'`{m}`' for m in missing)}; it has {', '.join(table.columns)}"
        )
    twice = table["slide_id"][table["slide_id"].duplicated()]
    if len(twice):
        raise EvaluationError(f"predictions {path}: slide {twice.iloc[0]} stands there twice; keep one row per slide")
    score = pd.to_numeric(table[column], errors="coerce")
    bad = table["slide_id"][~score.between(0, 1)]
    if len(bad):
        raise EvaluationError(
            f"predictions {path}, column `{column}`: {len(bad)} cells are no probability, the first of slide "
            f"{bad.iloc[0]}"
        )
    labelled = table["label"] != ""
    notes = [] if labelled.all() else [f"{int((~labelled).sum())} slides without a label are left out"]
    if not (table["label"] == positive).any():
        raise EvaluationError(f"predictions {path}: no slide has label `{positive}`; name the positive label")
    parts = table["split"] if "split" in table else pd.Series(split, index=table.index)

    def scored(rows: pd.Series[bool]) -> Scored:
        truth = (table["label"][rows] == positive).to_numpy().astype(np.int64)
        return Scored(truth, score[rows].to_numpy(np.float64))

    test, validation = labelled & (parts == split), labelled & (parts == "val") & (split != "val")
    groups = {name: table[name][test].tolist() for name in by}
    slides = evaluate_slides(scored(test), scored(validation), groups=groups, threshold=threshold)
    return Evaluation(slides, None, None, (*slides.notes, *notes))
