"""The table of predictions: a row per slide, with calibrated probabilities, raw ones and the call; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from wsi_ips.inference import SlideScores
from wsi_ips.inference.verdict import Verdict
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.calibration import Calibration
from wsi_ips.pipeline.prediction.scored import model_calibration, predicted, slide_scores
from wsi_ips.pipeline.run import Run
from wsi_ips.provenance import atomic_path

DIGITS = 6


def write_predictions(run: Run, calibration: Calibration | None = None) -> None:
    """Write ``predictions.csv``: one row per predicted slide, in the order of the manifest.

    Columns of the label: ``probability_CLASS`` (calibrated), ``raw_probability_CLASS`` (as the network gave it),
    ``predicted`` (by the bundle's threshold), ``label`` (of the manifest). Further tasks have the same with ``NAME_``
    in front. ``highest_tiles`` is a second opinion on the last class
    (:attr:`wsi_ips.inference.SlideScores.highest_tiles`).
    """
    known = calibration or model_calibration(run)
    rows = [_row(run, record, slide_scores(run, record, known)) for record in predicted(run)]
    columns = ["slide_id"]
    for task in run.recipe.labels.tasks:
        prefix = _prefix(task.name)
        columns += [f"{prefix}probability_{c}" for c in task.classes]
        columns += [f"{prefix}predicted", f"{prefix}label"]
    columns += ["split", "tiles", "seconds", "highest_tiles"]
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
    highest = round(scores.highest_tiles, DIGITS)
    tiles = len(scores.attention_logits)
    return row | {"split": record.split, "tiles": tiles, "seconds": scores.seconds, "highest_tiles": highest}


def _prefix(task: str) -> str:
    return "" if task == "label" else f"{task}_"


@dataclass(frozen=True)
class PredictedSlide:
    """One line of what a prediction came to.

    Attributes
    ----------
    slide_id, state, reason
        As in the table of states.
    verdicts
        Per task; empty where the slide has no scores that are up to date.
    tiles
        Tiles that were scored.
    picture
        Probability map; None where there is none.
    """

    slide_id: str
    state: str
    reason: str
    verdicts: tuple[Verdict, ...]
    tiles: int | None
    picture: Path | None


def predicted_slides(run: Run, records: Sequence[SlideRecord], calibration: Calibration) -> list[PredictedSlide]:
    """What the prediction of these slides came to, in their order."""
    done = {record.slide_id for record in predicted(run)}
    found = []
    for record in records:
        state = run.states[record.slide_id]
        picture = run.folder.overlay(record.slide_id, "probability")
        verdicts = slide_scores(run, record, calibration).verdicts if record.slide_id in done else ()
        shown = picture if verdicts and picture.exists() else None
        found.append(PredictedSlide(record.slide_id, state.state, state.reason, verdicts, state.tiles, shown))
    return found
