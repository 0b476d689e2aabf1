"""The score table: attention logits and single-tile probability of every tile of a slide.

``scores.zarr/<slide_id>`` is a Zarr v3 group. Row i of ``attention_logits``, float32 (N, T, H), and of
``tile_probability``, float32 (N, C), is row i of the slide's tile index. ``kept``, int32 (K,), holds the ids of the
selected tiles, best first, and ``kept_embeddings``, float32 (K, D), their embeddings, from which the slide's
probabilities are pooled. Attributes: schema version, slide id, tasks, class probabilities of the slide per task, time,
fingerprint, check of a calibrated scan backend. Attention is computed from these. All values are those of the network;
a calibration is applied when they are shown.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import GroupNotFoundError

from wsi_ips.errors import ScoresError
from wsi_ips.evaluation.calibration import Calibration, DecisionName
from wsi_ips.inference.decision import by_tiles
from wsi_ips.inference.verdict import Verdict, verdict
from wsi_ips.labels import Task
from wsi_ips.model.scan_backends import ScanCheck
from wsi_ips.model.selection import selection_score
from wsi_ips.provenance import atomic_folder

SCHEMA_VERSION = 4
ROWS_PER_CHUNK = 65_536
HIGHEST_TILES = 16
"""Tiles of :attr:`SlideScores.highest_tiles`."""
ARRAYS = ("attention_logits", "tile_probability", "kept", "kept_embeddings")


@dataclass(frozen=True)
class SlideScores:
    """Scores of one slide.

    Attributes
    ----------
    slide_id
        Identity of the slide.
    attention_logits
        float32, shape (N, T, H); raw, so that any softmax can be taken later.
    tile_probability
        float32, shape (N, C): class probabilities of each tile alone.
    kept
        Ids of the selected tiles, best first, shape (K,).
    kept_embeddings
        Their embeddings, float32, shape (K, D), with their position where the network adds it.
    tasks
        Tasks of the model, with C classes in all of them; the first one is the label.
    probabilities
        Class probabilities of the slide, per task, not calibrated.
    seconds
        Time the pass over the slide took.
    fingerprint
        Fingerprint of the checkpoint and the tile index behind the scores.
    check
        Result of the check of a calibrated scan backend; None where none was used.
    calibration
        Calibration of the model, never stored here; None leaves probabilities as they are.
    """

    slide_id: str
    attention_logits: NDArray[np.float32]
    tile_probability: NDArray[np.float32]
    kept: NDArray[np.int32]
    kept_embeddings: NDArray[np.float32]
    tasks: tuple[Task, ...]
    probabilities: tuple[tuple[float, ...], ...]
    seconds: float
    fingerprint: str
    check: ScanCheck | None = None
    calibration: Calibration | None = None

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
    with atomic_folder(root / scores.slide_id) as folder:
        group = zarr.create_group(
            store=folder,
            zarr_format=3,
            attributes={
                "schema_version": SCHEMA_VERSION,
                "slide_id": scores.slide_id,
                "tasks": [asdict(task) for task in scores.tasks],
                "probabilities": scores.probabilities,
                "seconds": scores.seconds,
                "fingerprint": scores.fingerprint,
                "check": asdict(scores.check) if scores.check else None,
            },
        )
        for name in ARRAYS:
            values = getattr(scores, name)
            rows = max(1, min(ROWS_PER_CHUNK, len(values)))
            group.create_array(name, data=values, chunks=(rows, *values.shape[1:]))


def read_scores(root: Path, slide_id: str) -> SlideScores:
    """Read one slide's scores.

    Raises
    ------
    ScoresError
        Missing, damaged or of another schema.
    """
    group = _open(root, slide_id)
    try:
        arrays: dict[str, Any] = {name: np.asarray(group[name][:]) for name in ARRAYS}  # type: ignore[index]
        stored: dict[str, Any] = dict(group.attrs)
        return SlideScores(
            slide_id=slide_id,
            tasks=tuple(Task(**{**task, "classes": tuple(task["classes"])}) for task in stored["tasks"]),
            probabilities=tuple(tuple(part) for part in stored["probabilities"]),
            seconds=float(stored["seconds"]),
            fingerprint=str(stored["fingerprint"]),
            check=ScanCheck(**stored["check"]) if stored["check"] else None,
            **arrays,
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ScoresError(
            f"scores of slide {slide_id} in {root}: damaged ({error}); delete them and run `wsi-ips predict`"
        ) from error


def stored_fingerprint(root: Path, slide_id: str) -> str | None:
    """Return the fingerprint of a slide's stored scores, None where none can be read."""
    try:
        return str(_open(root, slide_id).attrs["fingerprint"])
    except (ScoresError, KeyError):
        return None


def _open(root: Path, slide_id: str) -> zarr.Group:
    try:
        group = zarr.open_group(root / slide_id, mode="r", zarr_format=3)
    except (FileNotFoundError, GroupNotFoundError) as error:
        raise ScoresError(f"scores of slide {slide_id}: none in {root}; run `wsi-ips predict` first") from error
    if group.attrs.get("schema_version") != SCHEMA_VERSION:
        raise ScoresError(
            f"scores of slide {slide_id} in {root}: written by another version; run `wsi-ips predict` again"
        )
    return group
