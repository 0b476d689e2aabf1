"""Evaluation of a table of predictions from any tool: one row per slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.slide_evaluation import Groups, Scored, evaluate_slides, group_columns
from wsi_ips.evaluation.staging import NODE_LABELS, Node, Patients, stage_patients
from wsi_ips.evaluation.summary import Evaluation


@dataclass(frozen=True)
class TableQuestion:
    """What to measure in a table of predictions."""

    positive: str  # label that counts as positive; all others are negative
    by: Sequence[str] = ()  # columns that make subgroups, in addition to those of sites
    split: str = "test"  # split to report on; all slides where there is no column ``split``
    threshold: float | None = None  # threshold in place of the one from the validation slides


def evaluate_table(table: pd.DataFrame, question: TableQuestion, source: str = "predictions") -> Evaluation:
    """Measure the slides of a table.

    Parameters
    ----------
    table
        Text cells, empty where unknown. Columns ``slide_id``, ``label``, and ``probability_POSITIVE`` or
        ``probability``; ``split`` if the threshold is to come from validation slides; ``patient_id`` if patients have
        several slides. Rows without a label are left out, with a note. With ``patient_id``, ``predicted``, and labels
        of lymph nodes in ``label`` and ``predicted``, patients are staged; then the probability may be missing.
    question
        What to measure.
    source
        Name of the table in messages.

    Raises
    ------
    EvaluationError
        A column is missing, a row cannot be used (the message names it), or there is nothing to compare.
    """
    nodes, notes = _are_nodes(table), list[str]()
    score = _probabilities(table, question, source, optional=nodes)
    parts = table["split"] if "split" in table else pd.Series(question.split, index=table.index)
    patients = _stages(table[parts == question.split], notes) if nodes else None
    if score is None:
        return Evaluation(None, patients=patients, notes=tuple(notes))
    labelled = table["label"] != ""
    if not labelled.all():
        notes.append(f"{int((~labelled).sum())} slides without a label are left out")
    if not (table["label"] == question.positive).any():
        raise EvaluationError(f"{source}: no slide has label `{question.positive}`; name the positive label")

    def scored(rows: pd.Series[bool]) -> Scored:
        truth = (table["label"][rows] == question.positive).to_numpy().astype(np.int64)
        of = table["patient_id"][rows].tolist() if "patient_id" in table else None
        return Scored(truth, np.asarray(score[rows], np.float64), of)

    test, validation = labelled & (parts == question.split), labelled & (parts == "val") & (question.split != "val")
    rows = [{str(name): str(cell) for name, cell in row.items()} for row in table[test].to_dict("records")]
    groups = Groups(group_columns(rows, question.by))
    slides = evaluate_slides(scored(test), scored(validation), groups=groups, threshold=question.threshold)
    return Evaluation(slides, patients=patients, notes=(*slides.notes, *notes))


def _probabilities(
    table: pd.DataFrame, question: TableQuestion, source: str, *, optional: bool
) -> pd.Series[float] | None:
    """Return the probability of the positive label per row; None where there is none and none is needed."""
    named = f"probability_{question.positive}"
    column = named if named in table else "probability"
    wanted = ("label", *(() if optional else (column,)), *question.by)
    missing = [f"`{name}`" for name in wanted if name not in table]
    if missing:
        raise EvaluationError(f"{source}: no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    if column not in table:
        return None
    score = pd.to_numeric(table[column], errors="coerce")
    bad = table["slide_id"][~score.between(0, 1)]
    if len(bad):
        raise EvaluationError(
            f"{source}, column `{column}`: {len(bad)} cells are no probability, the first of slide {bad.iloc[0]}"
        )
    return score


def _are_nodes(table: pd.DataFrame) -> bool:
    """Tell whether the table holds labels of patients' lymph nodes."""
    if not {"patient_id", "label", "predicted"} <= set(table.columns):
        return False
    labels = {*table["label"], *table["predicted"]} - {""}
    return bool(labels) and labels <= set(NODE_LABELS)


def _stages(table: pd.DataFrame, notes: list[str]) -> Patients | None:
    columns = ["patient_id", "label", "predicted"]
    whole = (table[columns] != "").all(axis=1)
    if not whole.all():
        notes.append(f"{int((~whole).sum())} nodes without patient, label or prediction are in no stage")
    nodes = [Node(*row) for row in table.loc[whole, columns].itertuples(index=False)]
    return stage_patients(nodes, notes) if nodes else None
