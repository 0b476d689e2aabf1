"""The table of predictions: a row per slide, with calibrated probabilities, raw ones and the call; no torch."""

from __future__ import annotations

import pandas as pd

from wsi_ips.inference import SlideScores
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.calibration import Calibration
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.scored import model_calibration, predicted, slide_scores
from wsi_ips.provenance import atomic_path

DIGITS = 6


def write_predictions(run: Run, calibration: Calibration | None = None) -> None:
    """Write ``predictions.csv``: one row per predicted slide, in the order of the manifest.

    Columns of the label: ``probability_CLASS`` (calibrated), ``raw_probability_CLASS`` (as the network gave it),
    ``predicted`` (by the bundle's threshold), ``label`` (of the manifest). Further tasks have the same with ``NAME_``
    in front.
    """
    known = calibration or model_calibration(run)
    rows = [_row(run, record, slide_scores(run, record, known)) for record in predicted(run)]
    columns = ["slide_id"]
    for task in run.recipe.labels.tasks:
        prefix = _prefix(task.name)
        columns += [f"{prefix}probability_{c}" for c in task.classes]
        columns += [f"{prefix}predicted", f"{prefix}label"]
    columns += ["split", "tiles", "seconds"]
    columns += [f"{_prefix(task.name)}raw_probability_{c}" for task in run.recipe.labels.tasks for c in task.classes]
    with atomic_path(run.folder.predictions) as temporary:
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False, lineterminator="\n")


def _row(run: Run, record: SlideRecord, scores: SlideScores) -> dict[str, object]:
    row: dict[str, object] = {"slide_id": record.slide_id}
    for task, verdict, truth in zip(scores.tasks, scores.verdicts, run.truths[record.slide_id], strict=True):
        prefix = _prefix(task.name)
        for kind, values in (("probability", verdict.probability), ("raw_probability", verdict.raw)):
            row |= {f"{prefix}{kind}_{c}": round(p, DIGITS) for c, p in zip(task.classes, values, strict=True)}
        row |= {f"{prefix}predicted": verdict.answer, f"{prefix}label": task.text(truth)}
    return row | {"split": record.split, "tiles": len(scores.attention_logits), "seconds": scores.seconds}


def _prefix(task: str) -> str:
    return "" if task == "label" else f"{task}_"
