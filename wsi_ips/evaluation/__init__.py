"""Evaluation: numbers in, numbers out."""

from wsi_ips.evaluation.intervals import slide_intervals
from wsi_ips.evaluation.localisation import TileFigures, false_alarm_mm2, pointing_hit, tile_figures
from wsi_ips.evaluation.slide import Interval, auc_with_interval, roc_curve, slide_metrics

__all__ = [
    "Interval",
    "TileFigures",
    "auc_with_interval",
    "false_alarm_mm2",
    "pointing_hit",
    "roc_curve",
    "slide_intervals",
    "slide_metrics",
    "tile_figures",
]
