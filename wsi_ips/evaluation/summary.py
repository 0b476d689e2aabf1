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
    """All metrics; what could not be computed is None, with the reason in ``notes``."""

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
        auc = metrics.get("auc")
        tiles, attention = (where.tile_probability, where.tile_attention) if where else (None, None)
        curve = where.lesions_by_peaks if where else None
        return {
            "test_auc": auc.value if auc else None,
            "test_auc_low": auc.low if auc else None,
            "test_auc_high": auc.high if auc else None,
            "test_auc_method": auc.method if auc else None,
            "test_positives": auc.positives if auc else None,
            "test_negatives": auc.negatives if auc else None,
            "test_threshold": slides.threshold if slides else None,
            "test_threshold_from": slides.threshold_from if slides else None,
            **{f"test_{name}": metrics[name].value for name in metrics if not name.startswith("auc")},
            **{
                f"test_{what}_{task.name}": value
                for task in self.tasks
                for what, value in (("accuracy", task.share_right), ("auc", task.mean_auc), ("slides", task.slides))
            },
            "tile_auc_probability": tiles.auc if tiles else None,
            "tile_pr_auc_probability": tiles.pr_auc if tiles else None,
            "tile_auc_attention": attention.auc if attention else None,
            "tile_pr_auc_attention": attention.pr_auc if attention else None,
            "froc": curve.score if curve else None,
            "froc_lesions": curve.lesions if curve else None,
            "tumour_tiles": tiles.tumour_tiles if tiles else None,
            "tiles": tiles.tiles if tiles else None,
        }


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
    lines.append(("time", f"{summary['seconds']:.0f} s", "all stages of the call"))
    lines.append(("peak memory", f"{summary['peak_rss_mb']:.0f} MB", "resident, main process"))
    return lines + [("note", "", note) for note in summary["notes"]]


def _plain(value: Any) -> Any:
    """Turn arrays into lists."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
