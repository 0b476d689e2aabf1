"""The plots of the report as inline SVG: of an evaluation, and of a training.

Text stays text, and the page's style sheet sets the colours (light, dark, print). Lines differ by colour and by dashes,
by the classes ``s0`` to ``s3``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from wsi_ips.evaluation.froc import TARGETS
from wsi_ips.evaluation.localisation import Localisation
from wsi_ips.evaluation.slide_evaluation import SlideEvaluation

WIDTH, HEIGHT = 300.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 14.0, 12.0, 42.0
LEGEND_ROW = 17.0
FINEST = 0.4  # points closer than this, in units of the plot, are drawn as one: no screen shows the difference
SMALL = 0.01  # axes that end below this are labelled in powers of ten

Kind = Literal["line", "steps", "points", "dots", "reference"]
Epoch = Mapping[str, float | None]


@dataclass(frozen=True)
class Axis:
    """One axis."""

    label: str
    low: float  # values beyond the ends are drawn at the end
    high: float
    ticks: tuple[float, ...]  # values with a grid line and a number
    log: bool = False
    names: tuple[str, ...] = ()  # texts at the ticks in place of the numbers

    def place(self, value: float) -> float:
        """Return the position of a value along the axis, 0 to 1."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def texts(self) -> tuple[str, ...]:
        """Return the texts at the ticks."""
        return self.names or tuple(f"{tick:g}" for tick in self.ticks)


def share_axis(label: str) -> Axis:
    """Return an axis from 0 to 1."""
    return Axis(label, 0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))


def fitted_axis(label: str, values: Sequence[float]) -> Axis:
    """Return an axis that spans finite values and 0, with a few round ticks."""
    low, high = min([*values, 0.0]), max(values)
    if low == high:
        high = low + 1.0
    ticks = MaxNLocator(nbins=5).tick_values(low, high)
    inside = tuple(float(t) for t in ticks if low <= t <= high * 1.0001)
    if abs(high) >= SMALL:
        return Axis(label, low, max(high, inside[-1]), inside)
    power = math.floor(math.log10(abs(high) or SMALL))  # 0.00032 would not fit beside the axis
    names = tuple(f"{tick / 10**power:.3g}" for tick in inside)
    return Axis(f"{label}, in 1e{power:d}", low, max(high, inside[-1]), inside, names=names)


@dataclass(frozen=True)
class Series:
    """One curve or set of points."""

    name: str  # text in the legend; empty for none
    x: Sequence[float]
    y: Sequence[float]
    # ``line``; ``steps`` (constant until the next x); ``points`` with intervals; ``dots``, small and translucent, for
    # many; ``reference``, thin and dashed
    kind: Kind = "line"
    style: int = 0  # 0 to 3
    low: Sequence[float] = ()  # ends of the intervals of points along y
    high: Sequence[float] = ()

    @property
    def css(self) -> str:
        """Class of the style sheet."""
        return "reference" if self.kind == "reference" else f"s{self.style}"


def plot(title: str, x: Axis, y: Axis, series: Sequence[Series], marks: Sequence[tuple[float, str]] = ()) -> Markup:
    """Draw a plot with vertical ``marks`` (position and meaning); the title is for screen readers."""
    named = [s for s in series if s.name]
    rows = len(named) + len(marks)
    total = Markup("-{} -{} {} {}").format(LEFT, TOP, WIDTH + LEFT + RIGHT, HEIGHT + TOP + BOTTOM + LEGEND_ROW * rows)
    mark = Markup('<path class="mark m{}" d="M{:.1f} 0V{}"/>')
    parts = [
        Markup('<svg class="plot" viewBox="{}" role="img" aria-label="{}">').format(total, title),
        _axes(x, y),
        *[_series(s, x, y) for s in series],
        *[mark.format(number, x.place(place) * WIDTH, HEIGHT) for number, (place, _) in enumerate(marks)],
        _legend(named, [text for _, text in marks]),
        Markup("</svg>"),
    ]
    return Markup("\n").join(parts)


def _axes(x: Axis, y: Axis) -> Markup:
    parts = [Markup('<rect class="frame" x="0" y="0" width="{}" height="{}"/>').format(WIDTH, HEIGHT)]
    for tick, text in zip(x.ticks, x.texts(), strict=True):
        at = x.place(tick) * WIDTH
        parts.append(Markup('<path class="grid" d="M{:.1f} 0V{}"/>').format(at, HEIGHT))
        parts.append(_text(at, HEIGHT + 16, text, "middle"))
    for tick, text in zip(y.ticks, y.texts(), strict=True):
        at = (1 - y.place(tick)) * HEIGHT
        parts.append(Markup('<path class="grid" d="M0 {:.1f}H{}"/>').format(at, WIDTH))
        parts.append(_text(-7, at + 4, text, "end"))
    parts.append(_text(WIDTH / 2, HEIGHT + 34, x.label, "middle"))
    turned = Markup('<text class="label" text-anchor="middle" transform="translate({} {}) rotate(-90)">{}</text>')
    parts.append(turned.format(-38, HEIGHT / 2, y.label))
    return Markup("\n").join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _series(series: Series, x: Axis, y: Axis) -> Markup:
    places = [(x.place(a) * WIDTH, (1 - y.place(b)) * HEIGHT) for a, b in zip(series.x, series.y, strict=True)]
    if series.kind == "dots":
        circle = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>')
        return Markup("").join(circle.format(series.css, *place) for place in places)
    if series.kind == "points":
        bar = Markup('<path class="{}" d="M{:.1f} {:.1f}V{:.1f}"/>')
        circle = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>')
        ends = [[(1 - y.place(end)) * HEIGHT for end in pair] for pair in zip(series.low, series.high, strict=True)]
        bars = [bar.format(series.css, across, *between) for (across, _), between in zip(places, ends, strict=True)]
        return Markup("\n").join([*bars, *[circle.format(series.css, *place) for place in places]])
    if series.kind == "steps":
        places = [places[0], *[p for a, b in pairwise(places) for p in ((b[0], a[1]), b)]] if places else []
    return _path(series.css, places)


def _path(name: str, places: Sequence[tuple[float, float]]) -> Markup:
    kept: list[tuple[float, float]] = []
    for number, place in enumerate(places):
        last = number == len(places) - 1
        if not kept or last or max(abs(place[0] - kept[-1][0]), abs(place[1] - kept[-1][1])) >= FINEST:
            kept.append(place)
    d = "L".join(f"{a:.1f} {b:.1f}" for a, b in kept)
    return Markup('<path class="{}" d="M{}"/>').format(name, d) if kept else Markup("")


def _legend(series: Sequence[Series], marks: Sequence[str]) -> Markup:
    parts = []
    top = HEIGHT + BOTTOM + 8
    for row, entry in enumerate(series):
        at = top + row * LEGEND_ROW
        if entry.kind == "dots":
            parts.append(Markup('<circle class="dot {}" cx="11" cy="{:.1f}" r="4"/>').format(entry.css, at))
        elif entry.kind == "points":
            parts.append(Markup('<path class="{0}" d="M11 {1:.1f}v14"/>').format(entry.css, at - 7))
            parts.append(Markup('<circle class="{}" cx="11" cy="{:.1f}" r="3.5"/>').format(entry.css, at))
        else:
            parts.append(Markup('<path class="{}" d="M0 {:.1f}H22"/>').format(entry.css, at))
        parts.append(_text(30, at + 4, entry.name, "start"))
    for row, text in enumerate(marks):
        at = top + (len(series) + row) * LEGEND_ROW
        parts.append(Markup('<path class="mark m{}" d="M11 {:.1f}v14"/>').format(row, at - 7))
        parts.append(_text(30, at + 4, text, "start"))
    return Markup("\n").join(parts)


@dataclass(frozen=True)
class History:
    """A training, epoch by epoch."""

    epochs: tuple[Epoch, ...]  # as in ``metrics.jsonl``
    kept: int | None = None  # epoch whose weights the model has; None where it is unknown
    warm_start: int = 0  # epochs on random tiles before the selection begins


def roc_plot(found: SlideEvaluation) -> Markup:
    """Draw the ROC curve with the point of the threshold."""
    across, ends = 1 - found.metrics["specificity"].value, found.metrics["sensitivity"]
    at = f"at threshold {found.threshold:.3g}"
    series = (
        Series("by chance", (0, 1), (0, 1), "reference"),
        Series("slide probability", *found.roc),
        Series(at, (across,), (ends.value,), "points", 1, (ends.low,), (ends.high,)),
    )
    x, y = share_axis("false positive rate (1 − specificity)"), share_axis("true positive rate (sensitivity)")
    return plot(f"ROC curve of the slide probability, area {found.metrics['auc'].value:.3f}", x, y, series)


def precision_recall_plot(found: SlideEvaluation) -> Markup:
    """Draw precision against recall; by chance, precision is the share of positive slides."""
    c = found.confusion
    share = (c.true_positive + c.false_negative) / sum((*vars(c).values(),))
    recall, precision = found.precision_recall
    series = (
        Series(f"by chance ({share:.2f})", (0, 1), (share, share), "reference"),
        Series("slide probability", recall, precision),
    )
    x, y = share_axis("recall (sensitivity)"), share_axis("precision")
    return plot(f"Precision and recall, average precision {found.metrics['pr_auc'].value:.3f}", x, y, series)


def reliability_plot(found: SlideEvaluation) -> Markup:
    """Draw observed against predicted frequency."""
    bins = found.reliability
    lows, highs = [b.low for b in bins], [b.high for b in bins]
    predicted, observed = [b.predicted for b in bins], [b.observed for b in bins]
    points = Series("slides of similar probability, 95 %", predicted, observed, "points", 0, lows, highs)
    series = (Series("a calibrated model", (0, 1), (0, 1), "reference"), points)
    return plot("Reliability: predicted and observed", share_axis("predicted"), share_axis("observed"), series)


def score_plot(found: SlideEvaluation, scores: Sequence[tuple[float, bool]], names: tuple[str, str]) -> Markup:
    """Draw every slide by its probability, negative and positive ones apart, with the names of the two."""
    series = []
    for style, (truth, name) in enumerate(zip((False, True), names, strict=True)):
        here = sorted(score for score, positive in scores if positive == truth)
        spread = [style + 0.12 * (number % 5 - 2) for number in range(len(here))]
        series.append(Series(f"{name} ({len(here)})", here, spread, "dots", style))
    y = Axis("label", -0.6, 1.6, (0.0, 1.0), names=("without", "with"))
    marks = ((found.threshold, f"threshold {found.threshold:.3g}"),)
    return plot("Probability of each slide by its label", share_axis("slide probability"), y, series, marks)


def froc_plot(found: Localisation) -> Markup | None:
    """Draw sensitivity for lesions against false positives per slide; None without a curve."""
    named = (("peaks of the map", found.lesions_by_peaks), ("connected parts", found.lesions_by_components))
    curves = [(name, curve) for name, curve in named if curve is not None]
    if not curves:
        return None
    names = ("¼", "½", *(f"{t:g}" for t in TARGETS[2:]))
    x = Axis("false positives per slide", 0.125, 16, TARGETS, log=True, names=names)
    series = [
        Series(
            f"{name}: score {curve.score:.3f}",
            [*curve.false_positives.tolist(), x.high],
            [*curve.sensitivity.tolist(), float(curve.sensitivity[-1])],
            "steps",
            style,
        )
        for style, (name, curve) in enumerate(curves)
    ]
    return plot("FROC: sensitivity for lesions", x, share_axis("lesions found"), series)


def learning_plots(history: History) -> list[tuple[str, Markup]]:
    """Draw losses, figures from 0 to 1, and the learning rate, as far as they were recorded."""
    epochs = history.epochs
    if len(epochs) < 2:
        return []
    last = float(epochs[-1]["epoch"] or len(epochs))
    marks = [(float(history.warm_start) + 0.5, "selection begins")] if 0 < history.warm_start < len(epochs) else []
    if history.kept is not None:
        marks.append((float(history.kept), f"epoch kept: {history.kept}"))
    x = fitted_axis("epoch", (0.0, last))
    plots = []
    groups = (
        ("Loss", "loss", (("loss", "training"), ("val_loss", "validation"), ("guess_loss", "training, by guessing"))),
        (
            "Right predictions",
            "share",
            (("accuracy", "training accuracy"), ("val_accuracy", "validation accuracy"), ("val_auc", "validation AUC")),
        ),
        (
            "Selection",
            "share",
            (("kept_in_outlines", "kept tiles inside outlines"), ("selection_overlap", "kept as at the last visit")),
        ),
        ("Learning rate", "learning rate", (("learning_rate", "learning rate"),)),
    )
    for title, label, keys in groups:
        series = [s for style, (key, name) in enumerate(keys) if (s := _curve(epochs, key, name, style))]
        values = [value for s in series for value in s.y]
        if series:
            y = share_axis(label) if label == "share" else fitted_axis(label, values)
            plots.append((title, plot(f"{title} by epoch", x, y, series, marks)))
    return plots


def _curve(epochs: Sequence[Epoch], key: str, name: str, style: int) -> Series | None:
    known = [(float(e["epoch"] or 0), float(value)) for e in epochs if (value := e.get(key)) is not None]
    return Series(name, [e for e, _ in known], [v for _, v in known], "line", style) if len(known) > 1 else None
