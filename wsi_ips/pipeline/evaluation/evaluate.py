"""Figures of a run's predictions: slides, subgroups, tasks, lesions, tiles, patients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import special

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation import (
    Evaluation,
    Patients,
    PatientStage,
    Scored,
    SlideEvaluation,
    TaskEvaluation,
    auc_with_interval,
    evaluate_slides,
    evaluate_task,
    node_label,
    pn_stage,
    quadratic_kappa,
)
from wsi_ips.evaluation.calibration import (
    DEFAULT_THRESHOLD,
    LEAST_PROBABILITY,
    Calibration,
    TaskCalibration,
    calibration_slope,
)
from wsi_ips.evaluation.staging import NODE_LABELS, largest_part_mm
from wsi_ips.geometry import Scale
from wsi_ips.inference import SlideScores, read_scores
from wsi_ips.inference.scores import HIGHEST_TILES
from wsi_ips.labels import Task
from wsi_ips.manifest import SlideRecord
from wsi_ips.manifest.manifest_csv import read_rows
from wsi_ips.pipeline.evaluation.localise import LEGACY_MPP, SIZES, localise, score_raster
from wsi_ips.pipeline.prediction.scored import calibrate, predicted
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.tiling.sheet import sheet_entries
from wsi_ips.results.sheet import SheetEntry, recall_figures

SITE_COLUMNS = ("centre", "center", "site", "scanner")
"""Columns of the manifest that make subgroups without being asked for."""
LARGEST_LESION = "largest lesion"
CLEARLY_BETTER = 0.05
"""Of an AUC, from which a second opinion is told."""


def evaluate_run(
    run: Run,
    *,
    by: Sequence[str] = (),
    split: str = "test",
    threshold: float | None = None,
    nodes: str | None = None,
    legacy_spacing: bool = False,
) -> Evaluation:
    """Figures of a run's predictions, with the temperature and the threshold that are frozen in the bundle.

    A model that this run trained is calibrated first where it is not yet, see
    :mod:`wsi_ips.pipeline.prediction.calibrate`.

    Parameters
    ----------
    run
        With predictions.
    by
        Further columns of the manifest that make subgroups, beside :data:`SITE_COLUMNS`.
    split
        Slides to report on.
    threshold
        Calibrated probability from which on a slide is called positive, in place of the bundle's.
    nodes
        Column of the manifest with what each lymph node holds; what is predicted is then measured on the map.
    legacy_spacing
        Lesions by the µm/px of the challenge's script and not by that of each slide.

    Raises
    ------
    EvaluationError
        No predicted slide of that split.
    ManifestError
        A column of ``by`` or ``nodes`` is not there.
    """
    chosen = [r for r in predicted(run) if r.split == split]
    if not chosen:
        raise EvaluationError(f"no predicted slide of split `{split}`; run `wsi-ips predict` first")
    calibration = calibrate(run)
    frozen = calibration.tasks[0]
    scores = {r.slide_id: _scores(run, r, calibration) for r in chosen}
    sheet, notes = sheet_entries(run), _not_predicted(run, chosen, split)
    known = [r for r in chosen if run.truth(r) is not None]
    if len(known) < len(chosen):
        notes.append(f"{len(chosen) - len(known)} slides of split `{split}` without a label are in no slide figure")
    sizes = largest_lesions(sheet)
    used = next(iter(frozen.thresholds[-1:]), DEFAULT_THRESHOLD) if threshold is None else threshold
    slides = None
    try:
        figures = evaluate_slides(
            _scored(run, known, scores),
            groups=_groups(run, known, by),
            positive_groups=_size_groups(known, sizes),
            threshold=used,
        )
        slides = _frozen(figures, frozen, _scored(run, known, scores, raw=True), given=threshold is not None)
    except EvaluationError as error:
        notes.append(f"no slide figures: {error}")
    if slides and frozen.decision == "pooled":
        notes += _second_opinion(run, known, scores, slides.metrics["auc"].value)
    localisation = localise(
        run,
        scores,
        chosen,
        notes,
        threshold=tile_threshold(run.recipe.labels.tasks[0], frozen.temperature, used),
        sizes=sizes,
        mpp=LEGACY_MPP if legacy_spacing else None,
    )
    patients = _patients_by_map(run, chosen, scores, nodes, used, notes) if nodes else _patients(run, known, scores)
    recall = recall_figures(sheet)
    return Evaluation(
        slides,
        localisation,
        patients,
        _tasks(run, chosen, scores, notes),
        recall if recall["lesions"] else None,
        (*(slides.notes if slides else ()), *notes),
    )


def _not_predicted(run: Run, chosen: Sequence[SlideRecord], split: str) -> list[str]:
    """A note on the slides of the split that are in no figure."""
    done = {r.slide_id for r in chosen}
    states = [run.states[r.slide_id].state for r in run.records if r.split == split and r.slide_id not in done]
    if not states:
        return []
    names = {"ok": "not predicted yet", "pending": "not worked on", "empty": "without tissue or tiles"}
    kinds = ", ".join(f"{count} {names.get(state, state)}" for state, count in Counter(states).items())
    return [f"{len(states)} of {len(states) + len(chosen)} slides of split `{split}` are in no figure: {kinds}"]


def tile_threshold(task: Task, temperature: float, threshold: float) -> float:
    """The threshold of slides for tiles, whose probabilities are not calibrated: what a slide of that tile alone needs.

    With more than two classes of which one holds there is no such number; the threshold is taken as it is.
    """
    if temperature == 1 or (task.kind == "single" and task.width > 2):
        return threshold
    inner = float(np.clip(threshold, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY))
    return float(special.expit(temperature * special.logit(inner)))


def _scores(run: Run, record: SlideRecord, calibration: Calibration) -> SlideScores:
    return replace(read_scores(run.folder.scores, record.slide_id), calibration=calibration)


def _second_opinion(
    run: Run, records: Sequence[SlideRecord], scores: Mapping[str, SlideScores], auc: float
) -> list[str]:
    """A note where single tiles tell slides apart clearly better than the model's decision does."""
    truth = _scored(run, records, scores).truth
    found = auc_with_interval(truth, np.array([scores[r.slide_id].highest_tiles for r in records])).value
    if found < auc + CLEARLY_BETTER:
        return []
    return [
        f"the {HIGHEST_TILES} highest tiles of a slide tell slides apart better (AUC {found:.3f}) than the model's "
        f"decision ({auc:.3f}): attention looks at other tiles than the map shows; see column `highest_tiles` of "
        "predictions.csv, and key `predict.decision: tiles`, which decides by such tiles without a new training"
    ]


def _scored(
    run: Run, records: Sequence[SlideRecord], scores: Mapping[str, SlideScores], *, raw: bool = False
) -> Scored:
    """Truth and calibrated probability of the positive class; ``raw``: as the network gave it."""
    label = run.recipe.labels.tasks[0]
    truth = np.array([label.is_positive(run.truth(r)) for r in records], np.int64)
    verdicts = [scores[r.slide_id].verdicts[0] for r in records]
    score = np.array([(v.raw if raw else v.probability)[-1] for v in verdicts], np.float64)
    return Scored(truth, score, [r.patient_id or "" for r in records])


def _frozen(figures: SlideEvaluation, frozen: TaskCalibration, raw: Scored, *, given: bool) -> SlideEvaluation:
    """Figures of calibrated probabilities, with where temperature and threshold come from."""
    notes = list(figures.notes)
    if frozen.note:
        notes.append(frozen.note)
    before = None
    if frozen.temperature != 1:
        with suppress(EvaluationError):  # its absence is noted with that of the calibrated one
            before = calibration_slope(raw.truth, raw.score)
    return replace(
        figures,
        threshold_from="given" if given else frozen.thresholds_from,
        calibration=before or figures.calibration,
        temperature=frozen.temperature if frozen.temperature != 1 else None,
        calibrated=figures.calibration if frozen.temperature != 1 else None,
        notes=tuple(notes),
    )


def _groups(run: Run, records: Sequence[SlideRecord], by: Sequence[str]) -> dict[str, list[str]]:
    """Cells of further columns, read as the manifest itself is; those of sites only where there are several."""
    cells = manifest_cells(run, by)
    found = {name: [cells[r.slide_id].get(name) or "(empty)" for r in records] for name in by}
    for name in SITE_COLUMNS:
        values = [cells[r.slide_id].get(name) or "(empty)" for r in records]
        if name not in found and len(set(values)) > 1:
            found[name] = values
    return found


def manifest_cells(run: Run, columns: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """All cells of the manifest by slide and column; ``columns`` must be there."""
    rows = read_rows(run.recipe.manifest, label_column=run.recipe.labels.column, further_columns=columns)
    return {row.cells["slide_id"]: row.cells for row in rows}


def largest_lesions(sheet: Sequence[SheetEntry]) -> dict[str, str]:
    """Size class of the largest annotated lesion, by slide."""
    return {e.slide_id: max((le["size_class"] for le in e.lesions), key=SIZES.index) for e in sheet if e.lesions}


def _size_groups(records: Sequence[SlideRecord], sizes: Mapping[str, str]) -> dict[str, list[str]]:
    if not any(r.slide_id in sizes for r in records):
        return {}
    return {LARGEST_LESION: [sizes.get(r.slide_id, "not annotated") for r in records]}


def _tasks(
    run: Run, records: Sequence[SlideRecord], scores: Mapping[str, SlideScores], notes: list[str]
) -> tuple[TaskEvaluation, ...]:
    """Figures of tasks that are more than the label's last class against one other."""
    found = []
    for number, task in enumerate(run.recipe.labels.tasks):
        if number == 0 and task.width == 2 and task.kind == "single":
            continue
        known = [r for r in records if run.truths[r.slide_id][number] is not None]
        if not known:
            notes.append(f"no figures of task `{task.name}`: its answer is known of no slide here")
            continue
        truth = np.array([run.truths[r.slide_id][number] for r in known])
        verdicts = [scores[r.slide_id].verdicts[number] for r in known]
        probability = np.array([verdict.probability for verdict in verdicts])
        answers = np.array([task.truth(verdict.answer) for verdict in verdicts])
        patients = [r.patient_id or "" for r in known]
        found.append(evaluate_task(task.name, task.classes, truth, probability, patients, answers))
    return tuple(found)


def _patients(run: Run, records: Sequence[SlideRecord], scores: Mapping[str, SlideScores]) -> Patients | None:
    """Stages, where the classes are those of lymph nodes and slides have patients."""
    task = run.recipe.labels.tasks[0]
    if not set(task.classes) <= set(NODE_LABELS) or task.kind == "multi":
        return None
    nodes = [(r.patient_id, task.text(run.truth(r)), scores[r.slide_id].label) for r in records if r.patient_id]
    return stage_patients(pd.DataFrame(nodes, columns=["patient_id", "stage", "predicted"]), []) if nodes else None


def _patients_by_map(
    run: Run,
    records: Sequence[SlideRecord],
    scores: Mapping[str, SlideScores],
    column: str,
    threshold: float,
    notes: list[str],
) -> Patients | None:
    """Stages from what each node holds by its map: the longest diameter of what is called tumour on it.

    A slide below the threshold holds none, whatever its tiles say.
    """
    cells = manifest_cells(run, [column])
    nodes = []
    for record in records:
        text = cells[record.slide_id].get(column, "")
        if not text or not record.patient_id:
            continue
        if text not in NODE_LABELS:
            raise EvaluationError(
                f"manifest {run.recipe.manifest}, slide {record.slide_id}, column `{column}`: `{text}` is none of "
                f"{', '.join(NODE_LABELS)}"
            )
        entry, index = scores[record.slide_id], run.index(record)
        temperature = entry.calibration.tasks[0].temperature if entry.calibration else 1.0
        of_tiles, longest = tile_threshold(run.recipe.labels.tasks[0], temperature, threshold), 0.0
        if entry.probability[-1] >= threshold:
            cell_um = Scale(index.stride_px0.x * index.mpp.x, index.stride_px0.y * index.mpp.y)
            raster = score_raster(entry, index)
            longest = largest_part_mm(raster.values >= of_tiles, cell_um)  # noqa: PD011 - no pandas
        nodes.append((record.patient_id, text, node_label(longest)))
    if not nodes:
        notes.append(f"no stages: no slide here has `patient_id` and `{column}`")
        return None
    return stage_patients(pd.DataFrame(nodes, columns=["patient_id", "stage", "predicted"]), notes)


def stage_patients(nodes: pd.DataFrame, notes: list[str]) -> Patients:
    """Stages from a row per lymph node: columns patient_id, stage and predicted, both with labels of nodes."""
    patients = tuple(
        PatientStage(str(patient), pn_stage(rows["stage"].tolist()), pn_stage(rows["predicted"].tolist()))
        for patient, rows in nodes.groupby("patient_id")
    )
    try:
        return Patients(patients, quadratic_kappa([p.stage for p in patients], [p.predicted for p in patients]))
    except EvaluationError as error:
        notes.append(f"no kappa: {error}")
        return Patients(patients, None)
