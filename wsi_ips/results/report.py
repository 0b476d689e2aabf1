"""The report: one self-contained page, rendered from plain data."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from wsi_ips.evaluation import Interval
from wsi_ips.provenance import atomic_write_text
from wsi_ips.results import report_plots
from wsi_ips.results.overlay import probability_text
from wsi_ips.results.report_data import ReportData, SlideEntry

METRIC_NAMES = {
    "auc": (
        "Area under the ROC curve",
        "chance that a positive slide is ranked above a negative one; 0.5 is chance, 1 best",
    ),
    "auc_bootstrap": ("The same by bootstrap", "the same area, its interval computed in another way"),
    "sensitivity": ("Sensitivity", "share of positive slides that were called positive"),
    "specificity": ("Specificity", "share of negative slides that were called negative"),
    "balanced_accuracy": ("Balanced accuracy", "mean of the two; 0.5 is chance"),
    "pr_auc": ("Average precision", "mean share of true calls over all thresholds"),
    "brier": ("Brier score", "mean squared error of the probability; 0 is best"),
}
"""Names of the metrics of :func:`wsi_ips.evaluation.slide_intervals` on the page, and what they mean."""
PROBLEMS = ("failed", "empty")
"""States shown before everything else, in this order."""
MOST_ALARMS = 20
"""Most false alarms shown; missed slides are all shown."""
OPEN_ROWS = 150
"""Rows of the worklist that are visible at once; the others are folded."""


def render_report(data: ReportData) -> str:
    """Return the page as HTML: self-contained, no script, text escaped."""
    environment = Environment(
        loader=PackageLoader("wsi_ips.results"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(data_uri=_data_uri, probability=probability_text, interval=_interval, share=_share)
    predicted = sorted((s for s in data.slides if s.probability is not None), key=lambda s: -(s.probability or 0.0))
    missed = sorted((s for s in predicted if s.outcome == "missed"), key=lambda s: s.probability or 0.0)
    alarms = [s for s in predicted if s.outcome == "false alarm"]
    drawn = [s for s in predicted if s.overlays and not s.outcome]
    return environment.get_template("report.html.j2").render(
        data=data,
        predicted=predicted,
        open_rows=OPEN_ROWS,
        problems=sorted((s for s in data.slides if s.state in PROBLEMS), key=lambda s: PROBLEMS.index(s.state)),
        missed=missed,
        alarms=alarms,
        most_alarms=MOST_ALARMS,
        drawn=drawn,
        linked={s.slide_id for s in (*missed, *alarms[:MOST_ALARMS], *drawn)},
        anchors={s.slide_id: f"slide-{number}" for number, s in enumerate(predicted, 1)},
        counts={state: sum(s.state == state for s in data.slides) for state in ("ok", "empty", "failed", "pending")},
        metric_names=METRIC_NAMES,
        plots=_plots(data, predicted),
        learning=report_plots.learning_plots(data.history) if data.history else [],
    )


def write_report(path: Path, data: ReportData) -> None:
    """Write the page; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, render_report(data))


def _plots(data: ReportData, predicted: Sequence[SlideEntry]) -> dict[str, Any]:
    """Return plots by name; those that cannot be drawn are missing."""
    found: dict[str, Any] = {}
    slides = data.evaluation.slides if data.evaluation else None
    if slides:
        scored = [
            (s.probability, s.positive)
            for s in predicted
            if s.split == data.split and s.positive is not None and s.probability is not None
        ]
        found["roc"] = report_plots.roc_plot(slides)
        found["precision_recall"] = report_plots.precision_recall_plot(slides)
        found["reliability"] = report_plots.reliability_plot(slides)
        found["scores"] = report_plots.score_plot(slides, scored, ("without", f"with {data.positive_class}"))
    if data.evaluation and data.evaluation.localisation:
        curve = report_plots.froc_plot(data.evaluation.localisation)
        if curve is not None:
            found["froc"] = curve
    return found


def _interval(found: Interval | None) -> str:
    return "–" if found is None else f"{found.value:.3f} ({found.low:.3f} – {found.high:.3f})"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}".replace("%", " %")


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
