"""The score table: attention logits and single-tile probability of every tile of a slide.

``scores.zarr/<slide_id>`` is a Zarr v3 group. Row i of ``attention_logits``, float32 (N, T, H), and of
``tile_probability``, float32 (N, C), is row i of the slide's tile index. ``kept``, int32 (K,), holds the ids of the
selected tiles, best first, and ``kept_embeddings``, float32 (K, D), their embeddings, from which the slide's
probabilities are pooled. Attributes: schema version, slide id, tasks, class probabilities of the slide per task, time,
fingerprint, check of a calibrated scan backend, checksums (:mod:`wsi_ips.tiles.store`). Attention is computed from
these. All values are those of the network; a calibration is applied when they are shown.

A slide can be classified from the probabilities of its single tiles (:func:`by_tiles`) instead of from the pooled ones
it kept: the cross-attention keeps tiles like those that mattered in training. On slides of other donors it may keep
others, while the single-tile probability still ranks tumour first (benchmarks/RESULTS.md, "Real textures"). This is the
top-k mean of multiple-instance learning.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from wsi_ips.errors import ScoresError
from wsi_ips.evaluation.calibration import Calibration, DecisionName, TaskCalibration, calibrated
from wsi_ips.labels import Task
from wsi_ips.model.scan_backends import ScanCheck
from wsi_ips.model.selection import selection_score
from wsi_ips.tiles.store import (
    damage_named,
    require_seal,
    require_whole,
    sealed,
    write_zarr,
    zarr_arrays,
    zarr_attributes,
)

SCHEMA_VERSION = 5
HIGHEST_TILES = 16  # tiles averaged in `SlideScores.highest_tiles`
ARRAYS = ("attention_logits", "tile_probability", "kept", "kept_embeddings")
DECIDING_TILES = 8  # over 19 trainings, 8 and 16 separate slides equally well, 4 a little worse (DECISIONS D84)
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
SINGLE_STEP = 2.0**-24  # smallest distance of a float32 from 1


def by_tiles(task: Task, tile_probability: NDArray[np.floating]) -> tuple[float, ...]:
    """Compute the class probabilities of a slide from the highest of its tiles, (N, C_t) with N > 0.

    The log-odds of a class are the mean over its :data:`DECIDING_TILES` highest tiles (over all, where there are
    fewer): against the first class, which stands for no finding; without such a class, against the mean of all classes;
    or, where several classes may apply, against its absence. They are not calibrated: a threshold must come from
    validation slides.
    """
    chance = np.maximum(tile_probability, LEAST_PROBABILITY).astype(np.float64)
    if task.kind == "multi":
        odds = np.log(chance) - np.log(np.maximum(1 - chance, SINGLE_STEP))  # (N, C)
        return tuple(special.expit(_mean_of_highest(odds)).tolist())
    if not task.has_background:
        odds = np.log(chance) - np.log(chance).mean(axis=1, keepdims=True)  # (N, C)
        return tuple(special.softmax(_mean_of_highest(odds)).tolist())
    odds = np.log(chance[:, 1:]) - np.log(chance[:, :1])  # (N, C - 1)
    return tuple(special.softmax(np.concatenate([[0.0], _mean_of_highest(odds)])).tolist())


def _mean_of_highest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sort(values, axis=0)[-DECIDING_TILES:].mean(axis=0))


@dataclass(frozen=True)
class Verdict:
    """Prediction of one task for a slide."""

    raw: tuple[float, ...]  # probabilities of each class from the network
    probability: tuple[float, ...]  # calibrated
    answer: str  # predicted class or classes, written as in a manifest


def verdict(task: Task, raw: tuple[float, ...], calibration: TaskCalibration) -> Verdict:
    """Calibrate the probabilities of one slide and apply the thresholds."""
    probability = calibrated(task, raw, calibration.temperature)
    return Verdict(raw, probability, task.answer(probability, calibration.thresholds))


@dataclass(frozen=True)
class SlideScores:
    """Scores of one slide."""

    slide_id: str
    attention_logits: NDArray[np.float32]  # (N, T, H); raw, so that any softmax can be taken later
    tile_probability: NDArray[np.float32]  # (N, C): class probabilities of each tile alone
    kept: NDArray[np.int32]  # (K,): ids of the selected tiles, best first
    kept_embeddings: NDArray[np.float32]  # (K, D), with positions where the network adds them
    tasks: tuple[Task, ...]  # tasks of the model, with C classes in all of them; the first one is the label
    probabilities: tuple[tuple[float, ...], ...]  # class probabilities of the slide, per task, not calibrated
    seconds: float  # time the pass over the slide took
    fingerprint: str  # of the checkpoint and the tile index behind the scores
    check: ScanCheck | None = None  # result of the check of a calibrated scan backend; None where none was used
    calibration: Calibration | None = None  # of the model, never stored here; None leaves probabilities as they are

    @property
    def attention(self) -> NDArray[np.float64]:
        """Mean attention over queries and heads, softmax over the whole slide, shape (N,); sums to 1."""
        return selection_score(self.attention_logits)

    @property
    def positive_probability(self) -> NDArray[np.float32]:
        """Single-tile probability of the label's last class, shape (N,)."""
        return self.tile_probability[:, self.tasks[0].width - 1]

    @property
    def highest_tiles(self) -> float:
        """Mean of the :data:`HIGHEST_TILES` highest values of :attr:`positive_probability`: a second opinion.

        On slides of donors that the model did not learn from, it separated slides where the decision by attention did
        not (benchmarks/RESULTS.md, "Real textures"). It is not calibrated.
        """
        return float(np.sort(self.positive_probability)[-HIGHEST_TILES:].mean(dtype=np.float64))

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of the label."""
        return self.tasks[0].classes

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Calibrated probabilities and the call of each task, decided as the model's calibration says."""
        calibration = self.calibration or Calibration.default(self.tasks)
        return tuple(
            verdict(task, self.decided(number, entry.decision), entry)
            for number, (task, entry) in enumerate(zip(self.tasks, calibration.tasks, strict=True))
        )

    def decided(self, number: int, decision: DecisionName) -> tuple[float, ...]:
        """Return the class probabilities of the slide in the task of this number, not calibrated."""
        if decision == "pooled":
            return self.probabilities[number]
        start = sum(task.width for task in self.tasks[:number])
        task = self.tasks[number]
        return by_tiles(task, self.tile_probability[:, start : start + task.width])

    @property
    def probability(self) -> tuple[float, ...]:
        """Probabilities of the label's classes, calibrated."""
        return self.verdicts[0].probability

    @property
    def label(self) -> str:
        """Predicted label, from the calibrated probabilities and the model's threshold."""
        return self.verdicts[0].answer


def write_scores(root: Path, scores: SlideScores) -> None:
    """Write one slide's scores atomically."""
    arrays = {name: getattr(scores, name) for name in ARRAYS}
    attributes = {
        "schema_version": SCHEMA_VERSION,
        "slide_id": scores.slide_id,
        "tasks": [asdict(task) for task in scores.tasks],
        "probabilities": scores.probabilities,
        "seconds": scores.seconds,
        "fingerprint": scores.fingerprint,
        "check": asdict(scores.check) if scores.check else None,
    }
    write_zarr(root / scores.slide_id, arrays, sealed(attributes, arrays))


def read_scores(root: Path, slide_id: str) -> SlideScores:
    """Read one slide's scores; raises ScoresError where they are not exactly those that were written."""
    stored = _header(root, slide_id)
    with _named(root, slide_id):
        arrays: dict[str, Any] = zarr_arrays(root / slide_id, ARRAYS)
        require_whole(stored, arrays)
        return SlideScores(
            slide_id=slide_id,
            tasks=tuple(Task(**{**task, "classes": tuple(task["classes"])}) for task in stored["tasks"]),
            probabilities=tuple(tuple(part) for part in stored["probabilities"]),
            seconds=float(stored["seconds"]),
            fingerprint=str(stored["fingerprint"]),
            check=ScanCheck(**stored["check"]) if stored["check"] else None,
            **arrays,
        )


def stored_fingerprint(root: Path, slide_id: str, *, whole: bool = False) -> str | None:
    """Return the fingerprint of a slide's stored scores, None where none can be read.

    ``whole`` also reads the scores: a table with a damaged value then has none.
    """
    try:
        return read_scores(root, slide_id).fingerprint if whole else str(_header(root, slide_id)["fingerprint"])
    except ScoresError:
        return None


def _header(root: Path, slide_id: str) -> dict[str, Any]:
    """Read the attributes of stored scores, without the scores."""
    with _named(root, slide_id):
        stored = zarr_attributes(root / slide_id)
        if stored.get("schema_version") != SCHEMA_VERSION:
            raise ScoresError(
                f"scores of slide {slide_id} in {root}: written by another version; run `wsi-ips predict`"
            )
        require_seal(stored)
        if stored["slide_id"] != slide_id:
            raise ValueError(f"they are those of slide {stored['slide_id']}")
        return stored


def _named(root: Path, slide_id: str) -> AbstractContextManager[None]:
    return damage_named(ScoresError, "scores", root, slide_id, command="wsi-ips predict")
