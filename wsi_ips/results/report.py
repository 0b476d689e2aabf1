"""The report: one page that holds everything, made from plain data."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from wsi_ips.evaluation import Interval
from wsi_ips.provenance import atomic_write_text
from wsi_ips.results.frame import probability_text
from wsi_ips.results.roc import SIDE, roc_points

METRIC_NAMES = {
    "auc": ("Area under the ROC curve", "chance that a slide with is ranked above one without; 0.5 is chance, 1 best"),
    "sensitivity": ("Sensitivity", "share of slides with that were called"),
    "specificity": ("Specificity", "share of slides without that were not called"),
    "balanced_accuracy": ("Balanced accuracy", "mean of the two; 0.5 is chance"),
    "pr_auc": ("Average precision", "mean share of true calls over all thresholds"),
    "brier": ("Brier score", "mean squared error of the probability; 0 is best"),
}
"""How the figures of :func:`wsi_ips.evaluation.slide_intervals` are called on the page, and what they mean."""


PROBLEMS = ("failed", "empty")
"""States shown before everything else, in this order."""


@dataclass(frozen=True)
class Figure:
    """One figure of the run.

    Attributes
    ----------
    name, value
        As they are shown.
    note
        What it rests on, in a few words.
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class TopTile:
    """One tile of a gallery.

    Attributes
    ----------
    jpeg
        The patch.
    probability
        Of the positive class, for this tile alone.
    x_px0, y_px0
        Top-left corner, level-0 pixels.
    """

    jpeg: bytes
    probability: float
    x_px0: int
    y_px0: int


@dataclass(frozen=True)
class SlideEntry:
    """One slide of the worklist.

    Attributes
    ----------
    slide_id, state, reason
        Identity and state.
    label, split
        As in the manifest, empty where not given.
    probability
        Of the positive class; None where the slide was not predicted.
    predicted
        Most probable class.
    tiles, tissue_mm2
        What was analysed.
    overlays
        JPEG pictures: probability, attention; empty where not drawn. Some 1400 px on their longer side
        are worth enlarging; the letters on them grow with the picture.
    top
        Tiles with the highest probability.
    tile_um
        Side of a tile, µm.
    """

    slide_id: str
    state: str
    reason: str
    label: str
    split: str
    probability: float | None
    predicted: str
    tiles: int | None
    tissue_mm2: float | None
    overlays: tuple[bytes, ...] = ()
    top: tuple[TopTile, ...] = ()
    tile_um: float = 0.0


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows.

    Attributes
    ----------
    title, positive_class, model_id
        Of the run.
    figures
        Headline figures.
    auc
        Slide AUC with its interval; None where it cannot be computed.
    roc
        False and true positive rates; empty where there is no AUC.
    slides
        All slides of the cohort.
    facts
        Name and value of what made the run.
    recipe
        The recipe as YAML.
    metrics
        Names and figures with their intervals, in the order they are shown: what
        :func:`wsi_ips.evaluation.slide_intervals` gives, other names as they are.
    threshold
        Probability from which on a slide is called positive.
    """

    title: str
    positive_class: str
    model_id: str
    figures: tuple[Figure, ...]
    auc: Interval | None
    roc: tuple[tuple[float, ...], tuple[float, ...]]
    slides: tuple[SlideEntry, ...]
    facts: tuple[tuple[str, str], ...]
    recipe: str
    metrics: tuple[tuple[str, Interval], ...] = ()
    threshold: float = 0.5


def render_report(data: ReportData) -> str:
    """The page as HTML: self-contained, no script, text escaped."""
    environment = Environment(
        loader=PackageLoader("wsi_ips.results"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(data_uri=_data_uri, probability=probability_text)
    predicted = sorted((s for s in data.slides if s.probability is not None), key=lambda s: -(s.probability or 0.0))
    counts = {state: sum(s.state == state for s in data.slides) for state in ("ok", "empty", "failed", "pending")}
    return environment.get_template("report.html.j2").render(
        data=data,
        predicted=predicted,
        problems=sorted((s for s in data.slides if s.state in PROBLEMS), key=lambda s: PROBLEMS.index(s.state)),
        drawn=[s for s in predicted if s.overlays],
        counts=counts,
        metrics=[(*METRIC_NAMES.get(name, (name, "")), interval) for name, interval in data.metrics],
        roc_points=roc_points(*data.roc) if data.roc[0] else "",
        roc_px=SIDE,
    )


def write_report(path: Path, data: ReportData) -> None:
    """Write the page; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, render_report(data))


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
