"""Predictions of a run: which slides have current scores, their calibration, and ``predictions.csv``; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_ips.config import LabelsSection, PredictSection
from wsi_ips.errors import CheckpointError
from wsi_ips.evaluation.calibration import Calibration, fit_task, read_calibration, write_calibration
from wsi_ips.inference.slide_scores import SlideScores, Verdict, read_scores, stored_fingerprint
from wsi_ips.labels import Target
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint_card import checkpoint_fingerprint, read_card
from wsi_ips.model.scan_backends import SCAN_BACKENDS
from wsi_ips.pipeline.progress import Progress
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.pipeline.slide_states import StateTable
from wsi_ips.provenance import atomic_write_text, fingerprint
from wsi_ips.tables import table_text
from wsi_ips.tiles.feature_store import features_fingerprint
from wsi_ips.tiles.recall import NotAnalysed

DIGITS = 6


@dataclass(frozen=True)
class PredictedSlide:
    """Result of one slide, for a line on the terminal."""

    slide_id: str
    state: str  # as in the table of states
    reason: str
    verdicts: tuple[Verdict, ...]  # one per task; empty if the slide has no current scores
    tiles: int | None  # number of tiles scored
    not_analysed: NotAnalysed | None  # tissue that no scored tile covers
    picture: Path | None  # probability map


@dataclass(frozen=True)
class RunPredictions:
    """Stored predictions of a run, and the model that makes them: the one the recipe names, else that of the run."""

    slides: RunSlides
    states: StateTable
    section: PredictSection
    labels: LabelsSection
    scan_backend: str
    features: Path | None  # stored features of another tool, where the model takes them
    progress: Progress

    @property
    def folder(self) -> RunFolder:
        """Folder of the run."""
        return self.states.folder

    @property
    def checkpoint(self) -> Path:
        """Folder of the model."""
        return self.section.checkpoint or self.folder.model

    def calibration(self) -> Calibration:
        """Read the calibration of the model."""
        return read_calibration(
            self.checkpoint, read_card(self.checkpoint).tasks, checkpoint_fingerprint(self.checkpoint)
        )

    def fingerprint(self, record: SlideRecord, model: str) -> str:
        """Return the fingerprint that a slide's scores by a ``model`` must have to be up to date."""
        how: list[str | None] = [self.scan_backend] if SCAN_BACKENDS[self.scan_backend].is_calibrated else []
        if self.features is not None:  # those of the model's own encoder are the pixels in another form
            how.append(features_fingerprint(self.features, record.slide_id))
        return fingerprint("scores", model, self.slides.header(record).fingerprint, *how)

    def has(self, record: SlideRecord, model: str, *, whole: bool = False) -> bool:
        """Return whether a slide's scores by a ``model`` are stored and up to date; ``whole``: and undamaged."""
        found = stored_fingerprint(self.folder.scores, record.slide_id, whole=whole)
        return found is not None and found == self.fingerprint(record, model)

    def predicted(self) -> list[SlideRecord]:
        """Return the slides whose stored scores match the model and their tiles."""
        model = checkpoint_fingerprint(self.checkpoint)
        return [record for record in self.states.with_tiles(self.slides.records) if self.has(record, model)]

    def scores(self, record: SlideRecord, calibration: Calibration) -> SlideScores:
        """Read a slide's scores and attach the calibration of the model."""
        return replace(read_scores(self.folder.scores, record.slide_id), calibration=calibration)


def predicted_slides(
    predictions: RunPredictions, records: Sequence[SlideRecord], calibration: Calibration, picture: str
) -> list[PredictedSlide]:
    """Return the results of some slides, in their order, with the ``picture`` of this score map."""
    done = {record.slide_id for record in predictions.predicted()}
    found = []
    for record in records:
        state, path = predictions.states[record.slide_id], predictions.folder.overlay(record.slide_id, picture)
        verdicts = predictions.scores(record, calibration).verdicts if record.slide_id in done else ()
        shown = path if verdicts and path.exists() else None
        facts = (state.state, state.reason, verdicts, state.tiles, state.not_analysed)
        found.append(PredictedSlide(record.slide_id, *facts, shown))
    return found


def calibrate(predictions: RunPredictions) -> Calibration:
    """Calibrate the run's model on its validation slides and store the calibration beside it.

    A model from elsewhere keeps its own calibration. The others are calibrated on all labelled slides of split ``val``
    that have tiles, and only once all of these are predicted: the result does not depend on their order.
    """
    folder, decision = predictions.checkpoint, predictions.section.decision
    if predictions.section.checkpoint is not None:
        known = predictions.calibration()
        theirs = known.tasks[0].decision
        if decision == "tiles" and theirs != "tiles":
            predictions.progress.note(
                f"key `predict.decision`: {folder} decides as calibrated, by `{theirs}`; set the key in the "
                "recipe of the run that trained it, and run `wsi-ips predict` there"
            )
        return known
    tasks, weights = read_card(folder).tasks, checkpoint_fingerprint(folder)
    try:
        known = read_calibration(folder, tasks, weights)
    except CheckpointError as error:
        predictions.progress.note(str(error))
        known = Calibration.default(tasks)
    slides = predictions.slides
    validation = [r for r in slides.records if r.split == "val"]
    done = {r.slide_id for r in predictions.predicted()}
    if any(predictions.states[r.slide_id].state == "ok" and r.slide_id not in done for r in validation):
        return known
    used = [r.slide_id for r in validation if r.slide_id in done]
    scores = [read_scores(predictions.folder.scores, name) for name in used]
    fitted = []
    for number, task in enumerate(tasks):
        targets = [slides.targets[name][number] for name in used]
        fitted.append(fit_task(task, targets, [entry.decided(number, decision) for entry in scores], decision))
    found = Calibration(tuple(fitted))
    if found != known:
        write_calibration(folder, found, weights)
        write_predictions(predictions, found)
        for entry in found.tasks:
            if entry.note:
                predictions.progress.note(f"calibration of `{entry.task}`: {entry.note}")
    return found


def write_predictions(predictions: RunPredictions, calibration: Calibration) -> None:
    """Write ``predictions.csv``: one row per predicted slide, in the order of the manifest.

    Columns of the label: ``probability_CLASS`` (calibrated), ``raw_probability_CLASS`` (of the network), ``predicted``
    (with the threshold of the calibration), ``label`` (from the manifest). Further tasks have the same columns with
    ``NAME_`` in front. ``highest_tiles`` is a second opinion on the last class
    (:attr:`wsi_ips.inference.slide_scores.SlideScores.highest_tiles`). ``share_not_analysed`` is the share of the
    tissue area that no scored tile covers.
    """
    targets = predictions.slides.targets
    shares = {state.slide_id: state.share_not_analysed for state in predictions.states}
    rows = [
        _row(r, predictions.scores(r, calibration), targets[r.slide_id]) | {"share_not_analysed": shares[r.slide_id]}
        for r in predictions.predicted()
    ]
    tasks = [(_prefix(task.name), task) for task in predictions.labels.tasks]
    columns = ["slide_id"]
    for prefix, task in tasks:
        columns += [*(f"{prefix}probability_{c}" for c in task.classes), f"{prefix}predicted", f"{prefix}label"]
    columns += ["split", "tiles", "share_not_analysed", "seconds", "highest_tiles"]
    columns += [f"{prefix}raw_probability_{c}" for prefix, task in tasks for c in task.classes]
    cells = ([row[name] for name in columns] for row in rows)
    atomic_write_text(predictions.folder.predictions, table_text(columns, cells))


def _row(record: SlideRecord, scores: SlideScores, targets: Sequence[Target]) -> dict[str, object]:
    row: dict[str, object] = {"slide_id": record.slide_id}
    for task, verdict, truth in zip(scores.tasks, scores.verdicts, targets, strict=True):
        prefix = _prefix(task.name)
        for kind, values in (("probability", verdict.probability), ("raw_probability", verdict.raw)):
            row |= {f"{prefix}{kind}_{c}": round(p, DIGITS) for c, p in zip(task.classes, values, strict=True)}
        row |= {f"{prefix}predicted": verdict.answer, f"{prefix}label": task.format(truth)}
    highest = round(scores.highest_tiles, DIGITS)
    tiles = len(scores.attention_logits)
    return row | {"split": record.split, "tiles": tiles, "seconds": scores.seconds, "highest_tiles": highest}


def _prefix(task: str) -> str:
    return "" if task == "label" else f"{task}_"
