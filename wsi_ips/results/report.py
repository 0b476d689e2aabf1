"""The report: one page that holds everything, made from plain data."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from wsi_ips.evaluation import Interval
from wsi_ips.provenance import atomic_write_text

ROC_PX = 260


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
        JPEG pictures: probability, attention; empty where not drawn.
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


def render_report(data: ReportData) -> str:
    """The page as HTML: self-contained, no script, text escaped."""
    environment = Environment(
        loader=PackageLoader("wsi_ips.results"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["data_uri"] = _data_uri
    predicted = sorted(
        (s for s in data.slides if s.probability is not None), key=lambda s: -(s.probability or 0.0)
    )
    counts = {state: sum(s.state == state for s in data.slides) for state in ("ok", "empty", "failed", "pending")}
    return environment.get_template("report.html.j2").render(
        data=data,
        predicted=predicted,
        problems=[s for s in data.slides if s.state in ("failed", "empty")],
        drawn=[s for s in predicted if s.overlays],
        counts=counts,
        roc_points=_polyline(*data.roc) if data.roc[0] else "",
        roc_px=ROC_PX,
    )


def write_report(path: Path, data: ReportData) -> None:
    """Write the page; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, render_report(data))


def _polyline(false: tuple[float, ...], true: tuple[float, ...]) -> str:
    points = zip(false, true, strict=True)
    return " ".join(f"{x * ROC_PX:.1f},{(1 - y) * ROC_PX:.1f}" for x, y in points)


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
