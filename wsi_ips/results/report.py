"""The report: one self-contained page, rendered from plain data, and its pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.evaluation.classification import Interval
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
PROBLEMS = ("failed", "unsuited", "empty")  # states shown before everything else, in this order
MOST_ALARMS = 20  # most false alarms shown; missed slides are all shown
OPEN_ROWS = 150  # rows of the worklist that are visible at once; the others are folded
PICTURE_PX, TILE_SHOWN_PX, THUMBNAIL_PX = 1000, 112, (96, 72)
MOST_PICTURES = 60  # most slides with pictures on the page; those of the others are in the run folder
PICTURE_BYTES = 15_000_000  # most bytes of all large pictures together; as text on the page they take a third more


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
    predicted, missed, alarms = _by_suspicion(data.slides)
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
        counts={
            state: sum(s.state == state for s in data.slides)
            for state in ("ok", "empty", "unsuited", "failed", "pending")
        },
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
    if data.evaluation is None:
        return {}
    found: dict[str, Any] = {}
    if slides := data.evaluation.slides:
        scored = [
            (s.probability, s.positive)
            for s in predicted
            if s.split == data.split and s.positive is not None and s.probability is not None
        ]
        found["roc"] = report_plots.roc_plot(slides)
        found["precision_recall"] = report_plots.precision_recall_plot(slides)
        found["reliability"] = report_plots.reliability_plot(slides)
        found["scores"] = report_plots.score_plot(slides, scored, ("without", f"with {data.positive_class}"))
    if (where := data.evaluation.localisation) and (curve := report_plots.froc_plot(where)) is not None:
        found["froc"] = curve
    return found


def _interval(found: Interval | None) -> str:
    return "–" if found is None else f"{found.value:.3f} ({found.low:.3f} – {found.high:.3f})"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}".replace("%", " %")


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def worth_pictures(entries: Sequence[SlideEntry], drawn: Collection[str]) -> list[str]:
    """Return the slides with heatmaps to show: missed ones, false alarms, then the most suspicious."""
    order, missed, alarms = _by_suspicion(entries)
    names = [e.slide_id for e in (*missed, *alarms[:MOST_ALARMS], *[e for e in order if not e.outcome])]
    return [name for name in names if name in drawn][:MOST_PICTURES]


def _by_suspicion(slides: Sequence[SlideEntry]) -> tuple[list[SlideEntry], list[SlideEntry], list[SlideEntry]]:
    """Return predicted slides by falling probability, missed ones by rising probability, and false alarms."""
    order = sorted((s for s in slides if s.probability is not None), key=lambda s: -(s.probability or 0.0))
    missed = sorted((s for s in order if s.outcome == "missed"), key=lambda s: s.probability or 0.0)
    return order, missed, [s for s in order if s.outcome == "false alarm"]


def picture_bytes(entry: SlideEntry) -> int:
    """Return the size of a slide's large pictures."""
    return sum(len(p.jpeg) for p in entry.overlays) + sum(len(t.jpeg) for t in entry.top)


def overlay_picture(path: Path) -> bytes:
    """Shrink a heatmap picture."""
    image = Image.open(path).convert("RGB")
    image.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    return _jpeg(image, 80)


def thumbnail(overlay: Path, tissue: Path) -> bytes | None:
    """Return a small picture of a slide: the map without its frame, else the picture of its tissue mask."""
    if overlay.exists() and overlay.with_suffix(".json").exists():
        x, y, width, height = json.loads(overlay.with_suffix(".json").read_text(encoding="utf-8"))["map_box_px"]
        with Image.open(overlay) as page:
            image = page.crop((x, y, x + width, y + height)).convert("RGB")
    elif tissue.exists():  # slide and mask side by side, 8 px apart
        with Image.open(tissue) as both:
            image = both.crop((0, 0, max(1, (both.width - 8) // 2), both.height)).convert("RGB")
    else:
        return None
    image.thumbnail(THUMBNAIL_PX, Image.Resampling.BOX)
    return _jpeg(image, 70)


def tile_picture(patch: NDArray[np.uint8]) -> bytes:
    """Shrink a patch, uint8, shape (height, width, 3)."""
    return _jpeg(Image.fromarray(patch).resize((TILE_SHOWN_PX, TILE_SHOWN_PX), Image.Resampling.BICUBIC), 80)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
