"""The score table: attention logits and single-tile probability of every tile of a slide.

``scores.zarr/<slide_id>`` is a Zarr v3 group: ``attention_logits`` float32 (N, T, H), ``tile_probability``
float32 (N, C), ``kept`` int32 (K,) the selected tile ids best first, ``kept_embeddings`` float32 (K, D) from which the
slide's probabilities are pooled, ``left_out`` float32 (K,) how far the slide's margin falls without each of them.
Attributes: schema version, slide id, tasks, class probabilities of the slide in each, fingerprint, check of an int8
scan. Row i is row i of the slide's tile index. Everything else (attention, evidence) is computed from these. All of it
is as the network gave it; a calibration is applied where it is shown.

The margin of a task is how far its last class is ahead: with two classes the log-odds
(:func:`wsi_ips.model.tasks.positive_margin`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import GroupNotFoundError

from wsi_ips.errors import ScoresError
from wsi_ips.evaluation.calibration import Calibration, DecisionName
from wsi_ips.inference.decision import LEAST_PROBABILITY, SINGLE_STEP, by_tiles
from wsi_ips.inference.verdict import Verdict, verdict
from wsi_ips.labels import Task
from wsi_ips.model.int8_check import Int8Check
from wsi_ips.model.rules import log_sum_exp, selection_score
from wsi_ips.provenance import atomic_folder

SCHEMA_VERSION = 3
ROWS_PER_CHUNK = 65_536
HIGHEST_TILES = 16
"""Tiles of :attr:`SlideScores.highest_tiles`."""
ARRAYS = ("attention_logits", "tile_probability", "kept", "left_out")


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
    left_out
        How far the label's margin falls when each kept tile is left out and the other K - 1 stay, float32, shape (K,);
        empty where one tile is kept. Tiles that are not kept have none: leaving them out changes nothing.
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
    left_out: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

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

        On slides of other donors than those learned from it told slides apart where the decision by attention did not
        (benchmarks/RESULTS.md, "Real textures"). It is not calibrated.
        """
        return float(np.sort(self.positive_probability)[-HIGHEST_TILES:].mean(dtype=np.float64))

    @property
    def margin(self) -> NDArray[np.float64]:
        """Margin of the label for each tile alone, shape (N,): the log-odds of :attr:`positive_probability`.

        From stored probabilities, so at most about 87; of a multi-label task 16, and less exact from 9 on.
        """
        task = self.tasks[0]
        chance = np.maximum(self.tile_probability[:, : task.width], LEAST_PROBABILITY).astype(np.float64)
        logs = np.log(chance)
        if task.kind == "multi":
            return np.asarray(logs[:, -1] - np.log(np.maximum(1 - chance[:, -1], SINGLE_STEP)))
        return np.asarray(logs[:, -1] - logs[:, :-1].mean(axis=1))

    @property
    def evidence(self) -> NDArray[np.float64]:
        """What each tile adds to the label's margin: its attention among the kept times its own margin, shape (N,).

        Over the kept tiles it adds up to the margin of the slide where the model was trained with `model.evidence`;
        with other models it is no more than that product. A tile that is not kept has what it would weigh beside them.
        """
        logits = self.attention_logits[:, :1]  # of the label's query
        return selection_score(logits, log_sum_exp(logits[self.kept].astype(np.float64))) * self.margin

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of the label."""
        return self.tasks[0].classes

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What is said of the slide in each task, decided and calibrated as the model's calibration has it."""
        calibration = self.calibration or Calibration.default(self.tasks)
        return tuple(
            verdict(task, self.decided(number, entry.decision), entry)
            for number, (task, entry) in enumerate(zip(self.tasks, calibration.tasks, strict=True))
        )

    def decided(self, number: int, decision: DecisionName) -> tuple[float, ...]:
        """Class probabilities of the slide in a task, by its number, not calibrated."""
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
        for name in (*ARRAYS, "kept_embeddings"):
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
            for name in ARRAYS
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
