"""The plots of the report: of an evaluation, and of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from wsi_ips.evaluation.froc import TARGETS
from wsi_ips.evaluation.localisation import Localisation
from wsi_ips.evaluation.slide_evaluation import SlideEvaluation
from wsi_ips.results.svg_plot import SHARE, Axis, Series, fitted_axis, plot, share_axis

Epoch = Mapping[str, float | None]


@dataclass(frozen=True)
class History:
    """A training, epoch by epoch."""

    # as in ``metrics.jsonl``: ``epoch``, ``loss``, ``val_loss``, ``learning_rate`` and others
    epochs: tuple[Epoch, ...]
    kept: int | None = None  # epoch whose weights the model has; None where it is unknown
    warm_start: int = 0  # epochs on random tiles before the selection begins


def roc_plot(found: SlideEvaluation) -> Markup:
    """Draw the ROC curve with the point of the threshold."""
    point = 1 - found.metrics["specificity"].value, found.metrics["sensitivity"].value
    ends = found.metrics["sensitivity"]
    series = (
        Series("by chance", (0, 1), (0, 1), "reference"),
        Series("slide probability", *found.roc),
        Series(f"at threshold {found.threshold:.3g}", (point[0],), (point[1],), "points", 1, (ends.low,), (ends.high,)),
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
    points = Series(
        "slides of similar probability, 95 %",
        [b.predicted for b in bins],
        [b.observed for b in bins],
        "points",
        0,
        [b.low for b in bins],
        [b.high for b in bins],
    )
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
    return plot(
        "Probability of each slide by its label",
        share_axis("slide probability"),
        y,
        series,
        ((found.threshold, f"threshold {found.threshold:.3g}"),),
    )


def froc_plot(found: Localisation) -> Markup | None:
    """Draw sensitivity for lesions against false positives per slide; None without a curve."""
    curves = [
        (name, curve)
        for name, curve in (
            ("peaks of the map", found.lesions_by_peaks),
            ("connected parts", found.lesions_by_components),
            ("detections given", found.lesions_given),
        )
        if curve is not None
    ]
    if not curves:
        return None
    x = Axis(
        "false positives per slide", 0.125, 16, TARGETS, log=True, names=("¼", "½", *(f"{t:g}" for t in TARGETS[2:]))
    )
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
        ("Loss", "loss", (("loss", "training"), ("val_loss", "validation"))),
        (
            "Right predictions",
            "share",
            (("accuracy", "training accuracy"), ("val_accuracy", "validation accuracy"), ("val_auc", "validation AUC")),
        ),
        ("Learning rate", "learning rate", (("learning_rate", "learning rate"),)),
    )
    for title, label, keys in groups:
        series = [s for style, (key, name) in enumerate(keys) if (s := _curve(epochs, key, name, style))]
        values = [value for s in series for value in s.y]
        if series:
            y = Axis(label, 0.0, 1.0, SHARE) if label == "share" else fitted_axis(label, values)
            plots.append((title, plot(f"{title} by epoch", x, y, series, marks)))
    return plots


def _curve(epochs: Sequence[Epoch], key: str, name: str, style: int) -> Series | None:
    known = [(float(e["epoch"] or 0), float(value)) for e in epochs if (value := e.get(key)) is not None]
    return Series(name, [e for e, _ in known], [v for _, v in known], "line", style) if len(known) > 1 else None
