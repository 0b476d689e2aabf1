"""The whole evaluation of a set of predictions: as JSON, as a flat summary, and as headline figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wsi_ips.evaluation.localisation import Localisation
from wsi_ips.evaluation.slide_evaluation import SlideEvaluation, TaskEvaluation
from wsi_ips.evaluation.staging import Patients


@dataclass(frozen=True)
class Evaluation:
    """All metrics; those that could not be computed are None, with the reason in ``notes``."""

    slides: SlideEvaluation | None  # last class of the label against all others
    localisation: Localisation | None = None  # where the score maps are right
    patients: Patients | None = None  # pN stages
    tasks: tuple[TaskEvaluation, ...] = ()  # metrics of each further task, and of a label with more than two classes
    tissue: dict[str, float] | None = None  # annotated ``lesions``, ``lost`` ones, shares ``in_tissue``, ``in_tiles``
    notes: tuple[str, ...] = ()  # what could not be computed or was left out, and why

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``evaluation.json``."""
        found: dict[str, Any] = _plain(asdict(self))
        return found

    def summary(self) -> dict[str, Any]:
        """Return the figures of ``summary.json``, by name."""
        slides, where = self.slides, self.localisation
        metrics = slides.metrics if slides else {}
        tiles, attention = (where.tile_probability, where.tile_attention) if where else (None, None)
        auc = {"": "value", "_low": "low", "_high": "high", "_method": "method"}
        return {
            **_named(metrics.get("auc"), {f"test_auc{end}": field for end, field in auc.items()}),
            **_named(metrics.get("auc"), {"test_positives": "positives", "test_negatives": "negatives"}),
            **_named(slides, {"test_threshold": "threshold", "test_threshold_from": "threshold_from"}),
            **{f"test_{name}": metrics[name].value for name in metrics if not name.startswith("auc")},
            **{
                f"test_{what}_{task.name}": value
                for task in self.tasks
                for what, value in (("accuracy", task.share_right), ("auc", task.mean_auc), ("slides", task.slides))
            },
            **_named(tiles, {"tile_auc_probability": "auc", "tile_pr_auc_probability": "pr_auc"}),
            **_named(attention, {"tile_auc_attention": "auc", "tile_pr_auc_attention": "pr_auc"}),
            **_named(where.lesions_by_peaks if where else None, {"froc": "score", "froc_lesions": "lesions"}),
            **_named(tiles, {"tumour_tiles": "tumour_tiles", "tiles": "tiles"}),
        }


def _named(found: object, fields: dict[str, str]) -> dict[str, Any]:
    """Return fields under other names; None for each where nothing was found."""
    return {name: getattr(found, field) if found else None for name, field in fields.items()}


def headline(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, value and note of the figures shown in the terminal and at the top of the report."""
    lines = []
    if summary["test_auc"] is not None:
        interval = f"95 % interval {summary['test_auc_low']:.3f}-{summary['test_auc_high']:.3f}"
        counts = f"{summary['test_positives']} + {summary['test_negatives']} slides"
        lines.append(("test AUC", f"{summary['test_auc']:.3f}", f"{interval}, {counts}"))
    for task in [name.removeprefix("test_accuracy_") for name in summary if name.startswith("test_accuracy_")]:
        auc, slides = summary[f"test_auc_{task}"], summary[f"test_slides_{task}"]
        mean_auc = "" if auc is None else f"mean AUC of its classes {auc:.3f}, "
        lines.append((f"accuracy, {task}", f"{summary[f'test_accuracy_{task}']:.3f}", f"{mean_auc}{slides} slides"))
    if summary["tile_auc_probability"] is not None:
        share = f"{summary['tumour_tiles']} of {summary['tiles']} test tiles are tumour"
        lines.append(("tile AUC, probability map", f"{summary['tile_auc_probability']:.3f}", share))
        lines.append(("tile AUC, attention", f"{summary['tile_auc_attention']:.3f}", "comparable within a slide only"))
    if summary.get("froc") is not None:
        lines.append(("FROC score, peaks", f"{summary['froc']:.3f}", f"{summary['froc_lesions']} lesions"))
    if summary.get("tile_recall") is not None:
        lost = f"{summary['lesions_lost']} of {summary['lesions']} annotated lesions lost before any learning"
        lines.append(("annotated tumour in tiles", f"{summary['tile_recall']:.1%}", lost))
    if summary.get("share_not_analysed") is not None:
        lines.append(("tissue not analysed", *not_analysed_texts(summary)))
    lines.append(("time", f"{summary['seconds']:.0f} s", "all stages of the call"))
    lines.append(("peak memory", f"{summary['peak_rss_mb']:.0f} MB", "resident, main process"))
    return lines + [("note", "", note) for note in summary["notes"]]


def not_analysed_texts(figures: dict[str, Any]) -> tuple[str, str]:
    """Return the share of the tissue that is in no tile, and a note: areas by reason, and the slides that lost most."""
    most = figures["most_not_analysed"]
    note = figures["not_analysed"] + (f"; most to flags: {most}" if most else "")
    return f"{figures['share_not_analysed']:.1%}", note


def _plain(value: Any) -> Any:
    """Turn arrays into lists."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
