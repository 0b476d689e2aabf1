"""Evaluation: numbers in, numbers out."""

from wsi_ips.evaluation.intervals import slide_intervals
from wsi_ips.evaluation.localisation import TileFigures, false_alarm_mm2, pointing_hit, tile_figures
from wsi_ips.evaluation.slide import Interval, auc_with_interval, roc_curve, slide_metrics
from wsi_ips.evaluation.tasks import TaskFigures, task_figures

__all__ = [
    "Interval",
    "TaskFigures",
    "TileFigures",
    "auc_with_interval",
    "false_alarm_mm2",
    "pointing_hit",
    "roc_curve",
    "slide_intervals",
    "slide_metrics",
    "task_figures",
    "tile_figures",
]
