"""Measure a run's predictions: gathers truth and scores from the run folder for :mod:`wsi_ips.evaluation`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wsi_ips.annotations import Classes, read_annotation, region_mask
from wsi_ips.errors import AnnotationClassError, AnnotationError, EvaluationError, TileIndexError, few
from wsi_ips.evaluation.calibration import DEFAULT_THRESHOLD, TaskCalibration
from wsi_ips.evaluation.classification import auc_with_interval
from wsi_ips.evaluation.froc import (
    LEGACY_MPP,
    MASK_DOWNSAMPLE,
    Detections,
    Lesions,
    Matched,
    find_lesions,
    match_detections,
)
from wsi_ips.evaluation.localisation import SIZES, Localisation, SlideMap, localise, localise_slide, tile_threshold
from wsi_ips.evaluation.slide_evaluation import (
    LARGEST_LESION,
    Groups,
    Scored,
    SlideEvaluation,
    TaskEvaluation,
    evaluate_slides,
    evaluate_task,
    group_columns,
    with_frozen_temperature,
)
from wsi_ips.evaluation.staging import NODE_LABELS, Node, Patients, largest_part_mm, node_label, stage_patients
from wsi_ips.evaluation.summary import Evaluation
from wsi_ips.geometry import Box, Point, Scale, Size
from wsi_ips.inference.slide_scores import HIGHEST_TILES, SlideScores, read_scores
from wsi_ips.labels import Target, Task, matched
from wsi_ips.manifest.manifest_csv import read_rows
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.slide_predictions import RunPredictions, calibrate
from wsi_ips.pipeline.tissue_sheet import sheet_entries
from wsi_ips.results.contact_sheet import recall_figures
from wsi_ips.results.score_raster import Raster, tile_raster
from wsi_ips.tiles.index import TileIndex

CLEARLY_BETTER = 0.05  # smallest lead in AUC of the highest tiles over the model's decision that gets a note


def evaluate_run(
    predictions: RunPredictions,
    *,
    by: Sequence[str] = (),
    split: str = "test",
    threshold: float | None = None,
    nodes: str | None = None,
    legacy_spacing: bool = False,
) -> Evaluation:
    """Measure a run's predictions with the temperature and the threshold stored in its checkpoint.

    A model that this run trained is calibrated first if necessary, see :mod:`wsi_ips.pipeline.slide_predictions`.

    Parameters
    ----------
    by
        Columns of the manifest that make subgroups, in addition to those of sites.
    threshold
        Calibrated probability at or above which a slide is called positive, in place of the checkpoint's.
    nodes
        Column of the manifest with the label of each lymph node; the prediction is then measured on the map.
    legacy_spacing
        Take the µm/px of the challenge's script for lesions, not that of each slide.

    Raises
    ------
    EvaluationError
        No predicted slide of that split.
    ManifestError
        A column of ``by`` or ``nodes`` is missing.
    """
    slides = _predicted_slides(predictions, split, threshold)
    sheet = sheet_entries(predictions.slides.records, predictions.states)
    sizes = {e.slide_id: max((le["size_class"] for le in e.lesions), key=SIZES.index) for e in sheet if e.lesions}
    notes = _not_predicted(predictions, slides.records, split)
    figures = _slide_figures(slides, by, sizes, notes)
    localisation = _localisation(slides, sizes, Scale(LEGACY_MPP, LEGACY_MPP) if legacy_spacing else None, notes)
    patients = _patients_by_map(slides, nodes, notes) if nodes else _patients(slides)
    recall = recall_figures(sheet)
    tissue = recall if recall["lesions"] else None
    found = Evaluation(figures, localisation, patients, _tasks(slides, notes), tissue)
    return replace(found, notes=(*(figures.notes if figures else ()), *notes))


@dataclass(frozen=True)
class _Slides:
    """Predicted slides of a split."""

    predictions: RunPredictions  # also of other splits
    records: Sequence[SlideRecord]
    unmapped: Sequence[SlideRecord]  # slides of the split in which tiling or prediction found nothing to score
    scores: Mapping[str, SlideScores]  # calibrated, by slide_id
    frozen: TaskCalibration  # calibration of the label
    given: float | None  # requested threshold; None takes the stored one

    @property
    def threshold(self) -> float:
        """Calibrated probability at or above which a slide is called positive."""
        return next(iter(self.frozen.thresholds[-1:]), DEFAULT_THRESHOLD) if self.given is None else self.given

    @property
    def tile_threshold(self) -> float:
        """The same for the uncalibrated probability of a tile."""
        return tile_threshold(self.task, self.frozen.temperature, self.threshold)

    @property
    def task(self) -> Task:
        """The label, which is the first task."""
        return self.predictions.labels.tasks[0]

    def target(self, record: SlideRecord) -> Target:
        """Return the known label of a slide."""
        return self.predictions.slides.target(record)

    def scored(self, *, raw: bool = False) -> Scored:
        """Return truth and probability of the positive class, calibrated or ``raw``."""
        verdicts = [self.scores[r.slide_id].verdicts[0] for r in self.records]
        return Scored(
            np.array([self.task.is_positive(self.target(r)) for r in self.records], np.int64),
            np.array([(v.raw if raw else v.probability)[-1] for v in verdicts], np.float64),
            [r.patient_id or "" for r in self.records],
        )


def _predicted_slides(predictions: RunPredictions, split: str, threshold: float | None) -> _Slides:
    chosen = [r for r in predictions.predicted() if r.split == split]
    if not chosen:
        raise EvaluationError(f"no predicted slide of split `{split}`; run `wsi-ips predict` first")
    calibration, stored = calibrate(predictions), predictions.folder.scores
    scores = {r.slide_id: replace(read_scores(stored, r.slide_id), calibration=calibration) for r in chosen}
    rows, names = predictions.states, {r.slide_id for r in chosen}
    others = [r for r in predictions.slides.records if r.split == split and r.slide_id not in names]
    unmapped = [r for r in others if rows[r.slide_id].is_tiled and rows[r.slide_id].state != "ok"]
    return _Slides(predictions, chosen, unmapped, scores, calibration.tasks[0], threshold)


def _not_predicted(predictions: RunPredictions, chosen: Sequence[SlideRecord], split: str) -> list[str]:
    """Return a note on the slides of the split without a prediction."""
    done = {r.slide_id for r in chosen}
    others = [r for r in predictions.slides.records if r.split == split and r.slide_id not in done]
    states = [predictions.states[r.slide_id].state for r in others]
    if not states:
        return []
    names = {
        "ok": "not predicted yet",
        "pending": "not processed",
        "empty": "without tissue or tiles",
        "unsuited": "unsuited",
    }
    kinds = ", ".join(f"{count} {names.get(state, state)}" for state, count in Counter(states).items())
    return [f"{len(states)} of {len(states) + len(chosen)} slides of split `{split}` are not measured: {kinds}"]


def _slide_figures(
    slides: _Slides, by: Sequence[str], sizes: Mapping[str, str], notes: list[str]
) -> SlideEvaluation | None:
    known = replace(slides, records=[r for r in slides.records if slides.target(r) is not None])
    unknown = len(slides.records) - len(known.records)
    if unknown:
        notes.append(f"{unknown} slides have no label and are not in the slide metrics")
    cells = manifest_cells(slides.predictions, by)
    names = [r.slide_id for r in known.records]
    by_size = {LARGEST_LESION: [sizes.get(name, "not annotated") for name in names]} if sizes.keys() & {*names} else {}
    groups = Groups(group_columns([cells[name] for name in names], by), by_size)
    frozen = slides.frozen
    try:
        found = evaluate_slides(known.scored(), groups=groups, threshold=slides.threshold)
    except EvaluationError as error:
        notes.append(f"no slide metrics: {error}")
        return None
    if frozen.decision == "pooled":
        notes += _second_opinion(known, found.metrics["auc"].value)
    return replace(
        with_frozen_temperature(found, known.scored(raw=True), frozen.temperature),
        threshold_from=frozen.thresholds_from if slides.given is None else "given",
        notes=(*found.notes, *([frozen.note] if frozen.note else [])),
    )


def _second_opinion(slides: _Slides, auc: float) -> list[str]:
    """Return a note where the highest tiles separate slides clearly better than the model's decision."""
    highest = np.array([slides.scores[r.slide_id].highest_tiles for r in slides.records])
    found = auc_with_interval(slides.scored().truth, highest).value
    if found < auc + CLEARLY_BETTER:
        return []
    return [
        f"the {HIGHEST_TILES} highest tiles of a slide separate slides better (AUC {found:.3f}) than the model's "
        f"decision ({auc:.3f}): attention selects other tiles than the map highlights; see column `highest_tiles` of "
        "predictions.csv, and key `predict.decision: tiles`, which decides by these tiles without new training"
    ]


def manifest_cells(predictions: RunPredictions, columns: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Return all cells of the manifest by slide and column; ``columns`` must exist."""
    manifest, label = predictions.slides.manifest, predictions.labels.column
    rows = read_rows(manifest, label_column=label, further_columns=columns)
    return {row.cells["slide_id"]: row.cells for row in rows}


def _localisation(
    slides: _Slides, sizes: Mapping[str, str], mpp: Scale | None, notes: list[str]
) -> Localisation | None:
    """Measure the slides whose tumour is known: annotated ones, and those without tumour.

    Without a background class, outlines show tumour of each slide's own class, and only those of the class that the
    map shows are measured. Slides without a map (no tissue, or failed) count with all their lesions missed; slides
    whose outlines may be tumour or not are left out. Where an annotation cannot be read there are no figures at all:
    without its lesions they would be too good.
    """
    found, unmapped, left_out, task = [], list[Matched](), [], slides.task
    for record in (*slides.records, *slides.unmapped):
        is_negative = task.is_negative(slides.target(record))
        is_shown = task.has_background or task.is_positive(slides.target(record))
        if not is_shown or not (record.is_fully_outlined or is_negative):
            left_out.append(record.slide_id)
            continue
        try:
            index = slides.predictions.slides.index(record)
            classes = slides.predictions.slides.tiling.tiles.annotation_classes
            lesions = read_lesions(record, index.size_px0, index.bounds, mpp or index.mpp, classes)
            if not is_negative and not lesions.labels.any():
                raise AnnotationClassError("no tumour in its outlines, though it is not known to be without")
        except AnnotationClassError as error:
            notes.append(f"slide {record.slide_id} is not in the lesion and tile metrics: {error}")
            continue
        except (AnnotationError, TileIndexError, OSError) as error:
            notes.append(
                f"no lesion and tile metrics, as without slide {record.slide_id} its lesions would not count as "
                f"missed: {error}"
            )
            return None
        if record.slide_id not in slides.scores:
            unmapped.append(match_detections(Detections(*np.zeros((3, 0))), lesions))
            continue
        size = sizes.get(record.slide_id, "")
        slide_map = replace(
            _slide_map(slides.scores[record.slide_id], index, lesions), is_negative=is_negative, largest_lesion=size
        )
        found.append(localise_slide(slide_map, slides.tile_threshold))
    if left_out:
        why = "without complete outlines" if task.has_background else f"without outlines of `{task.classes[-1]}`"
        notes.append(f"{len(left_out)} slides {why} are not in the lesion and tile metrics: {few(left_out)}")
    if missed := sum(len(slide.best) for slide in unmapped):
        notes.append(f"{missed} lesions of slides without a map count as missed")
    return localise(found, notes, unmapped=unmapped)


def _slide_map(entry: SlideScores, index: TileIndex, lesions: Lesions) -> SlideMap:
    raster, fraction = score_raster(entry, index), index.tumour_fraction
    return SlideMap(
        values=raster.values,
        origin_px0=raster.origin_px0,
        cell_px0=raster.cell_px0,
        mpp=index.mpp,
        probability=entry.positive_probability,
        attention=entry.attention,
        tissue_fraction=index.tissue_fraction,
        tumour_fraction=np.zeros(len(index), np.float32) if fraction is None else fraction,
        kept=entry.kept,
        lesions=lesions,
    )


def score_raster(entry: SlideScores, index: TileIndex) -> Raster:
    """Return the map of the positive class, a value per grid cell."""
    return tile_raster(
        index.x,
        index.y,
        entry.positive_probability,
        bounds=index.grid,
        stride_px0=index.stride_px0,
        footprint_px0=index.plan.footprint_px0,
    )


def read_lesions(record: SlideRecord, size: Size, bounds: Box, mpp: Scale, classes: Classes | None = None) -> Lesions:
    """Return the annotated lesions of a slide at the challenge's downsample; none where it is not annotated.

    Raises AnnotationClassError where outlines of unknown classes may be lesions; the slide is known in part only.
    """
    if record.annotation is None:
        shape = (-(-size.height // MASK_DOWNSAMPLE), -(-size.width // MASK_DOWNSAMPLE))
        return Lesions(np.zeros(shape, np.int32), frozenset(), MASK_DOWNSAMPLE)
    regions = read_annotation(record.annotation, bounds_origin=Point(bounds.x, bounds.y), classes=classes)
    if not regions.unknown.is_empty:
        raise AnnotationClassError(f"annotation {record.annotation}: {regions.remark()}")
    mask = region_mask(regions.tumour, size, downsample=MASK_DOWNSAMPLE)
    return find_lesions(mask, mpp=(mpp.x + mpp.y) / 2 * MASK_DOWNSAMPLE, downsample=MASK_DOWNSAMPLE)


def _tasks(slides: _Slides, notes: list[str]) -> tuple[TaskEvaluation, ...]:
    """Measure further tasks, and a label with more than two classes."""
    found, targets = [], slides.predictions.slides.targets
    for number, task in enumerate(slides.predictions.labels.tasks):
        if number == 0 and task.width == 2 and task.kind == "single":
            continue
        known = [r for r in slides.records if targets[r.slide_id][number] is not None]
        if not known:
            notes.append(f"no metrics of task `{task.name}`: no slide here has a known answer")
            continue
        truth = np.array([targets[r.slide_id][number] for r in known])
        verdicts = [slides.scores[r.slide_id].verdicts[number] for r in known]
        probability = np.array([verdict.probability for verdict in verdicts])
        answers = np.array([task.parse(verdict.answer) for verdict in verdicts])
        patients = [r.patient_id or "" for r in known]
        found.append(evaluate_task(task.name, task.classes, truth, probability, patients, answers))
    return tuple(found)


def _patients(slides: _Slides) -> Patients | None:
    """Stage patients where the classes are those of lymph nodes and slides have patients."""
    task = slides.task
    if not set(task.classes) <= set(NODE_LABELS) or task.kind == "multi":
        return None
    nodes = [
        Node(r.patient_id, text, slides.scores[r.slide_id].label)
        for r in slides.records
        if r.patient_id and (text := task.format(slides.target(r)))
    ]
    return stage_patients(nodes, []) if nodes else None


def _patients_by_map(slides: _Slides, column: str, notes: list[str]) -> Patients | None:
    """Stage patients by the longest diameter of what each node's map calls tumour.

    A slide below the threshold is negative, even if some of its tiles are not.
    """
    run_slides = slides.predictions.slides
    cells, nodes = manifest_cells(slides.predictions, [column]), []
    for record in slides.records:
        text = cells[record.slide_id].get(column, "")
        if not text or not record.patient_id:
            continue
        text = matched(text, NODE_LABELS)
        if text not in NODE_LABELS:
            raise EvaluationError(
                f"manifest {run_slides.manifest}, slide {record.slide_id}, column `{column}`: `{text}` is none of "
                f"{', '.join(NODE_LABELS)}"
            )
        entry, index, longest = slides.scores[record.slide_id], run_slides.index(record), 0.0
        if entry.probability[-1] >= slides.threshold:
            cell_um = Scale(index.stride_px0.x * index.mpp.x, index.stride_px0.y * index.mpp.y)
            called = score_raster(entry, index).values >= slides.tile_threshold
            longest = largest_part_mm(called, cell_um)
        nodes.append(Node(record.patient_id, text, node_label(longest)))
    if not nodes:
        notes.append(f"no stages: no slide here has `patient_id` and `{column}`")
        return None
    return stage_patients(nodes, notes)
