"""Figures of a run's predictions: slides, subgroups, lesions, tiles, patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from wsi_ips.annotations import read_annotation
from wsi_ips.annotations.raster import region_mask
from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation import (
    Detections,
    Froc,
    Lesions,
    Scored,
    SlideEvaluation,
    component_detections,
    evaluate_slides,
    false_alarm_mm2,
    find_lesions,
    froc,
    peak_detections,
    pn_stage,
    pointing_hit,
    quadratic_kappa,
)
from wsi_ips.evaluation.calibration import calibration as calibration_of
from wsi_ips.evaluation.localisation import TUMOUR_TILE
from wsi_ips.evaluation.staging import NODE_LABELS
from wsi_ips.geometry import Point
from wsi_ips.inference import SlideScores, read_scores
from wsi_ips.manifest import SlideRecord
from wsi_ips.manifest.table import read_rows
from wsi_ips.model.calibration import DEFAULT_THRESHOLD, Calibration, TaskCalibration
from wsi_ips.pipeline.calibrate import calibrate
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.scored import predicted
from wsi_ips.results import tile_raster

MASK_DOWNSAMPLE = 32
"""Level-0 pixels per pixel of the lesion masks: level 5 of CAMELYON16."""
LEAST_PEAK = 0.05
"""Peaks below it would change no figure but those at very many false positives."""


@dataclass(frozen=True)
class Localisation:
    """Where the score map is right, over the test slides whose tumour is known.

    Attributes
    ----------
    lesions_by_peaks, lesions_by_components
        FROC of CAMELYON16, detections picked in two ways; None without lesions.
    pointing
        Share of tumour slides whose highest tile is tumour.
    selection_recall
        Share of tumour slides of which a tumour tile is among those kept.
    false_alarm_mm2
        Tissue called tumour per slide without, mean, mm².
    tumour_slides, other_slides
        What it rests on: slides with a tumour tile, and slides without tumour.
    """

    lesions_by_peaks: Froc | None
    lesions_by_components: Froc | None
    pointing: float | None
    selection_recall: float | None
    false_alarm_mm2: float | None
    tumour_slides: int
    other_slides: int


@dataclass(frozen=True)
class Patients:
    """Stages of patients by their lymph nodes.

    Attributes
    ----------
    table
        Columns patient_id, stage, predicted.
    kappa
        Quadratically weighted; None where it is undefined.
    """

    table: pd.DataFrame
    kappa: float | None


@dataclass(frozen=True)
class Evaluation:
    """All that could be computed; the rest is None, with the reason in ``notes``."""

    slides: SlideEvaluation | None
    localisation: Localisation | None
    patients: Patients | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For ``evaluation.json``."""
        patients = None
        if self.patients is not None:
            patients = {"kappa": self.patients.kappa, "patients": self.patients.table.to_dict("records")}
        return {
            "slides": asdict(self.slides) if self.slides else None,
            "localisation": _without_arrays(asdict(self.localisation)) if self.localisation else None,
            "patients": patients,
            "notes": list(self.notes),
        }


def evaluate_run(
    run: Run, *, by: Sequence[str] = (), split: str = "test", threshold: float | None = None
) -> Evaluation:
    """Figures of a run's predictions, with the temperature and the threshold that are frozen in the bundle.

    A model that this run trained is calibrated first where it is not yet, see :mod:`wsi_ips.pipeline.calibrate`.

    Parameters
    ----------
    run
        With predictions.
    by
        Further columns of the manifest that make subgroups.
    split
        Slides to report on.
    threshold
        Calibrated probability from which on a slide is called positive, in place of the bundle's.

    Raises
    ------
    EvaluationError
        No predicted slide of that split.
    ManifestError
        A column of ``by`` is not there.
    """
    chosen = [r for r in predicted(run) if r.split == split]
    if not chosen:
        raise EvaluationError(f"no predicted slide of split `{split}`; run `wsi-ips predict` first")
    calibration = calibrate(run)
    scores = {r.slide_id: _scores(run, r, calibration) for r in chosen}
    notes: list[str] = []
    known = [r for r in chosen if run.truth(r) is not None]
    used = next(iter(calibration.tasks[0].thresholds[-1:]), DEFAULT_THRESHOLD) if threshold is None else threshold
    slides = None
    try:
        figures = evaluate_slides(_scored(run, known, scores), groups=_groups(run, known, by), threshold=used)
        slides = _frozen(
            figures, calibration.tasks[0], _scored(run, known, scores, raw=True), given=threshold is not None
        )
    except EvaluationError as error:
        notes.append(f"no slide figures: {error}")
    localisation = _localisation(run, chosen, scores, used, notes)
    patients = _patients(run, known, scores, notes)
    return Evaluation(slides, localisation, patients, (*(slides.notes if slides else ()), *notes))


def _scores(run: Run, record: SlideRecord, calibration: Calibration) -> SlideScores:
    return replace(read_scores(run.folder.scores, record.slide_id), calibration=calibration)


def _scored(
    run: Run, records: Sequence[SlideRecord], scores: Mapping[str, SlideScores], *, raw: bool = False
) -> Scored:
    """Truth and calibrated probability of the positive class; ``raw``: as the network gave it."""
    label = run.recipe.labels.tasks[0]
    truth = np.array([label.is_positive(run.truth(r)) for r in records], np.int64)
    verdicts = [scores[r.slide_id].verdicts[0] for r in records]
    return Scored(truth, np.array([(v.raw if raw else v.probability)[-1] for v in verdicts], np.float64))


def _frozen(figures: SlideEvaluation, frozen: TaskCalibration, raw: Scored, *, given: bool) -> SlideEvaluation:
    """Figures of calibrated probabilities, with where temperature and threshold come from."""
    notes = list(figures.notes)
    if frozen.note:
        notes.append(frozen.note)
    is_default = frozen.slides == 0 or "threshold" in frozen.note
    before = None
    if frozen.temperature != 1:
        with suppress(EvaluationError):  # its absence is noted with that of the calibrated one
            before = calibration_of(raw.truth, raw.score)
    return replace(
        figures,
        threshold_from="given" if given else "default" if is_default else "validation",
        calibration=before or figures.calibration,
        temperature=frozen.temperature if frozen.temperature != 1 else None,
        calibrated=figures.calibration if frozen.temperature != 1 else None,
        notes=tuple(notes),
    )


def _groups(run: Run, records: Sequence[SlideRecord], by: Sequence[str]) -> dict[str, list[str]]:
    """Cells of further columns, read as the manifest itself is."""
    rows = read_rows(run.recipe.manifest, label_column=run.recipe.labels.column, further_columns=by)
    cells = {row.cells["slide_id"]: row.cells for row in rows}
    return {name: [cells[r.slide_id].get(name) or "(empty)" for r in records] for name in by}


def _localisation(
    run: Run, records: Sequence[SlideRecord], scores: dict[str, SlideScores], threshold: float, notes: list[str]
) -> Localisation | None:
    """Figures of the slides whose tumour is known: annotated ones, and those without tumour."""
    label = run.recipe.labels.tasks[0]
    peaks, components = list[tuple[Detections, Lesions]](), list[tuple[Detections, Lesions]]()
    pointing, recalled, alarms = list[bool](), list[bool](), list[float]()
    for record in records:
        is_negative = label.is_negative(run.truth(record))
        if record.annotation is None and not is_negative:
            continue
        entry, index = scores[record.slide_id], run.index(record)
        lesions = _lesions(run, record)
        raster = tile_raster(
            index.x,
            index.y,
            entry.positive_probability,
            bounds=index.grid,
            stride_px0=index.stride_px0,
            footprint_px0=index.plan.footprint_px0,
        )
        origin, cell = raster.origin_px0, raster.cell_px0
        picked = peak_detections(raster.values, origin_px0=origin, cell_px0=cell, mpp=index.mpp, least=LEAST_PEAK)
        peaks.append((picked, lesions))
        parts = component_detections(raster.values, origin_px0=origin, cell_px0=cell, least=threshold)
        components.append((parts, lesions))
        if index.tumour_fraction is not None and (index.tumour_fraction > TUMOUR_TILE).any():
            pointing.append(pointing_hit(index.tumour_fraction, entry.positive_probability))
            recalled.append(bool((index.tumour_fraction[entry.kept] > TUMOUR_TILE).any()))
        elif is_negative:
            tile_mm2 = index.stride_px0.x * index.mpp.x * index.stride_px0.y * index.mpp.y / 1e6
            area = false_alarm_mm2(
                entry.positive_probability, index.tissue_fraction, tile_mm2=tile_mm2, threshold=threshold
            )
            alarms.append(area)
    if not peaks:
        notes.append("no localisation: no slide is annotated or known to be without tumour")
        return None
    return Localisation(
        _froc(peaks, notes),
        _froc(components, []),
        _mean(pointing),
        _mean(recalled),
        _mean(alarms),
        len(pointing),
        len(alarms),
    )


def _froc(detected: Sequence[tuple[Detections, Lesions]], notes: list[str]) -> Froc | None:
    try:
        return froc(detected)
    except EvaluationError as error:
        notes.append(f"no FROC: {error}")
        return None


def _lesions(run: Run, record: SlideRecord) -> Lesions:
    """Lesions of a slide at the challenge's downsample; none where it is not annotated."""
    index = run.index(record)
    size, mpp = index.size_px0, (index.mpp.x + index.mpp.y) / 2
    if record.annotation is None:
        shape = (-(-size.height // MASK_DOWNSAMPLE), -(-size.width // MASK_DOWNSAMPLE))
        return Lesions(np.zeros(shape, np.int32), frozenset(), MASK_DOWNSAMPLE)
    regions = read_annotation(record.annotation, bounds_origin=Point(index.bounds.x, index.bounds.y))
    mask = region_mask(regions.tumour, size, downsample=MASK_DOWNSAMPLE)
    return find_lesions(mask, mpp=mpp * MASK_DOWNSAMPLE, downsample=MASK_DOWNSAMPLE)


def _patients(
    run: Run, records: Sequence[SlideRecord], scores: dict[str, SlideScores], notes: list[str]
) -> Patients | None:
    """Stages, where the classes are those of lymph nodes and slides have patients."""
    task = run.recipe.labels.tasks[0]
    if not set(task.classes) <= set(NODE_LABELS) or task.kind == "multi":
        return None
    nodes = [(r.patient_id, task.text(run.truth(r)), scores[r.slide_id].label) for r in records if r.patient_id]
    if not nodes:
        notes.append("no stages: fill column `patient_id` of the manifest")
        return None
    return stage_patients(pd.DataFrame(nodes, columns=["patient_id", "stage", "predicted"]), notes)


def stage_patients(nodes: pd.DataFrame, notes: list[str]) -> Patients:
    """Stages from a row per lymph node: columns patient_id, stage and predicted, both with labels of nodes."""
    table = pd.DataFrame(
        [
            {"patient_id": patient, **{name: pn_stage(rows[name].tolist()) for name in ("stage", "predicted")}}
            for patient, rows in nodes.groupby("patient_id")
        ]
    )
    try:
        return Patients(table, quadratic_kappa(table["stage"].tolist(), table["predicted"].tolist()))
    except EvaluationError as error:
        notes.append(f"no kappa: {error}")
        return Patients(table, None)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _without_arrays(value: Any) -> Any:
    """Curves as lists."""
    if isinstance(value, dict):
        return {name: _without_arrays(entry) for name, entry in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value
