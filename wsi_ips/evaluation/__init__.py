"""Evaluation: numbers in, numbers out."""

from wsi_ips.evaluation.calibration import (
    CalibrationSlope,
    ReliabilityBin,
    calibration_slope,
    fit_temperature,
    fixed_threshold,
    reliability,
    with_temperature,
)
from wsi_ips.evaluation.classes import ClassFigures, TaskEvaluation, evaluate_task
from wsi_ips.evaluation.cohort import Scored, SlideEvaluation, Subgroup, evaluate_slides
from wsi_ips.evaluation.flipping import Flipping, patch_flipping
from wsi_ips.evaluation.froc import (
    Detections,
    Froc,
    Lesions,
    Matched,
    component_detections,
    find_lesions,
    froc,
    froc_interval,
    match_detections,
    peak_detections,
)
from wsi_ips.evaluation.intervals import share_interval, slide_intervals
from wsi_ips.evaluation.localisation import (
    TileFigures,
    effective_tiles,
    false_alarm_mm2,
    pointing_hit,
    tile_figures,
)
from wsi_ips.evaluation.outcome import Evaluation, Localisation, Patients, PatientStage, SizeRecall
from wsi_ips.evaluation.slide import Interval, auc_with_interval, precision_recall, roc_curve, slide_metrics
from wsi_ips.evaluation.staging import node_label, pn_stage, quadratic_kappa
from wsi_ips.evaluation.tasks import TaskFigures, task_figures

__all__ = [
    "CalibrationSlope",
    "ClassFigures",
    "Detections",
    "Evaluation",
    "Flipping",
    "Froc",
    "Interval",
    "Lesions",
    "Localisation",
    "Matched",
    "PatientStage",
    "Patients",
    "ReliabilityBin",
    "Scored",
    "SizeRecall",
    "SlideEvaluation",
    "Subgroup",
    "TaskEvaluation",
    "TaskFigures",
    "TileFigures",
    "auc_with_interval",
    "calibration_slope",
    "component_detections",
    "effective_tiles",
    "evaluate_slides",
    "evaluate_task",
    "false_alarm_mm2",
    "find_lesions",
    "fit_temperature",
    "fixed_threshold",
    "froc",
    "froc_interval",
    "match_detections",
    "node_label",
    "patch_flipping",
    "peak_detections",
    "pn_stage",
    "pointing_hit",
    "precision_recall",
    "quadratic_kappa",
    "reliability",
    "roc_curve",
    "share_interval",
    "slide_intervals",
    "slide_metrics",
    "task_figures",
    "tile_figures",
    "with_temperature",
]
