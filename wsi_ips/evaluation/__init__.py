"""Evaluation: numbers in, numbers out."""

from wsi_ips.evaluation.calibration import (
    Calibration,
    ReliabilityBin,
    calibration,
    fit_temperature,
    fixed_threshold,
    reliability,
    with_temperature,
)
from wsi_ips.evaluation.cohort import Scored, SlideEvaluation, evaluate_slides
from wsi_ips.evaluation.flipping import Flipping, patch_flipping
from wsi_ips.evaluation.froc import Detections, Froc, Lesions, component_detections, find_lesions, froc, peak_detections
from wsi_ips.evaluation.intervals import slide_intervals
from wsi_ips.evaluation.localisation import TileFigures, false_alarm_mm2, pointing_hit, tile_figures
from wsi_ips.evaluation.slide import Interval, auc_with_interval, roc_curve, slide_metrics
from wsi_ips.evaluation.staging import node_label, pn_stage, quadratic_kappa
from wsi_ips.evaluation.tasks import TaskFigures, task_figures

__all__ = [
    "Calibration",
    "Detections",
    "Flipping",
    "Froc",
    "Interval",
    "Lesions",
    "ReliabilityBin",
    "Scored",
    "SlideEvaluation",
    "TaskFigures",
    "TileFigures",
    "auc_with_interval",
    "calibration",
    "component_detections",
    "evaluate_slides",
    "false_alarm_mm2",
    "find_lesions",
    "fit_temperature",
    "fixed_threshold",
    "froc",
    "node_label",
    "patch_flipping",
    "peak_detections",
    "pn_stage",
    "pointing_hit",
    "quadratic_kappa",
    "reliability",
    "roc_curve",
    "slide_intervals",
    "slide_metrics",
    "task_figures",
    "tile_figures",
    "with_temperature",
]
