"""Evaluation: numbers in, numbers out; no files."""

from wsi_ips.evaluation.calibration import (
    CalibrationSlope,
    calibration_slope,
    fit_temperature,
    fixed_threshold,
    reliability,
    with_temperature,
)
from wsi_ips.evaluation.classification import Interval, auc_with_interval, precision_recall, roc_curve, slide_metrics
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
from wsi_ips.evaluation.intervals import Bootstrap, share_interval, slide_intervals
from wsi_ips.evaluation.localisation import (
    Localisation,
    SizeRecall,
    effective_tiles,
    false_alarm_mm2,
    pointing_hit,
    tile_figures,
)
from wsi_ips.evaluation.multiclass import TaskEvaluation, evaluate_task, task_figures
from wsi_ips.evaluation.slide_evaluation import Groups, Scored, SlideEvaluation, evaluate_slides
from wsi_ips.evaluation.staging import Node, Patients, PatientStage, node_label, pn_stage, quadratic_kappa
from wsi_ips.evaluation.summary import Evaluation

__all__ = [
    "Bootstrap",
    "CalibrationSlope",
    "Detections",
    "Evaluation",
    "Froc",
    "Groups",
    "Interval",
    "Lesions",
    "Localisation",
    "Matched",
    "Node",
    "PatientStage",
    "Patients",
    "Scored",
    "SizeRecall",
    "SlideEvaluation",
    "TaskEvaluation",
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
