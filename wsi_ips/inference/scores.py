"""The score table: attention logits and single-tile probability of every tile of a slide.

``scores.zarr/<slide_id>`` is a Zarr v3 group: ``attention_logits`` float32 (N, T, H), ``tile_probability``
float32 (N, C), ``kept`` int32 (K,) the selected tile ids best first, ``kept_embeddings`` float32 (K, D) from which the
slide's probabilities are pooled. Attributes: schema version, slide id,
tasks, class probabilities of the slide in each, fingerprint, check of an int8 scan. Row i is row i of the slide's tile
index. All of it is as the network gave it; a calibration is applied where it is shown.
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
from wsi_ips.inference.verdict import Verdict, verdict
from wsi_ips.labels import Task
from wsi_ips.model.calibration import Calibration
from wsi_ips.model.int8_check import Int8Check
from wsi_ips.model.rules import selection_score
from wsi_ips.provenance import atomic_folder

SCHEMA_VERSION = 2
ROWS_PER_CHUNK = 65_536


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
        float32, shape (N, C): what the model says of each tile alone.
    kept
        Ids of the selected tiles, best first, shape (K,).
    tasks
        What was asked of the slide; the first one is its label, C classes in all of them.
    probabilities
        Class probabilities of the slide, per task, as the network gave them.
    seconds
        Time the pass over the slide took.
    fingerprint
        Of the checkpoint and the tile index behind the scores.
    int8
        Where a scan in 8-bit integers was asked for: how near it is; None for other scans.
    kept_embeddings
        float32, shape (K, D): of the selected tiles, with their position where the network adds it; None in tables of
        before they were stored.
    calibration
        How the probabilities are to be read; never stored here, for it is the model's. None: as they are.
    """

    slide_id: str
    attention_logits: NDArray[np.float32]
    tile_probability: NDArray[np.float32]
    kept: NDArray[np.int32]
    tasks: tuple[Task, ...]
    probabilities: tuple[tuple[float, ...], ...]
    seconds: float
    fingerprint: str
    int8: Int8Check | None = None
    kept_embeddings: NDArray[np.float32] | None = None
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
    def classes(self) -> tuple[str, ...]:
        """Classes of the label."""
        return self.tasks[0].classes

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What is said of the slide in each task, after calibration."""
        calibration = self.calibration or Calibration.default(self.tasks)
        return tuple(
            verdict(task, raw, entry)
            for task, raw, entry in zip(self.tasks, self.probabilities, calibration.tasks, strict=True)
        )

    @property
    def probability(self) -> tuple[float, ...]:
        """Probabilities of the label's classes, calibrated."""
        return self.verdicts[0].probability

    @property
    def label(self) -> str:
        """What the slide is called, by its calibrated probabilities and the model's threshold."""
        return self.verdicts[0].answer


def write_scores(root: Path, scores: SlideScores) -> None:
    """Write one slide's scores; a reader sees the old ones or the new ones, never half."""
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
                "int8": asdict(scores.int8) if scores.int8 else None,
            },
        )
        for name in ("attention_logits", "tile_probability", "kept", "kept_embeddings"):
            values = getattr(scores, name)
            if values is None:
                continue
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
        arrays: dict[str, Any] = {
            name: np.asarray(group[name][:])  # type: ignore[index]
            for name in ("attention_logits", "tile_probability", "kept")
        }
        stored: dict[str, Any] = dict(group.attrs)
        return SlideScores(
            slide_id=slide_id,
            tasks=tuple(Task(**{**task, "classes": tuple(task["classes"])}) for task in stored["tasks"]),
            probabilities=tuple(tuple(part) for part in stored["probabilities"]),
            seconds=float(stored["seconds"]),
            fingerprint=str(stored["fingerprint"]),
            int8=Int8Check(**stored["int8"]) if stored.get("int8") else None,
            kept_embeddings=np.asarray(group["kept_embeddings"][:]) if "kept_embeddings" in group else None,  # type: ignore[index]
            **arrays,
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ScoresError(
            f"scores of slide {slide_id} in {root}: damaged ({error}); delete them and run `wsi-ips predict`"
        ) from error


def stored_fingerprint(root: Path, slide_id: str) -> str | None:
    """Fingerprint of a slide's stored scores, None where there are none that can be read."""
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
