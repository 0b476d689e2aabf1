"""Check stored predictions: each slide's probability computed again from what is stored of its tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_ips.errors import CheckpointError, ScoresError
from wsi_ips.inference import SlideScores, read_scores
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.card import CARD_NAME
from wsi_ips.pipeline.prediction.scored import checkpoint_folder, predicted
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.tiling.verify import Mismatch

if TYPE_CHECKING:
    from wsi_ips.inference.selfcheck import Recomputed

TOLERANCE = 1e-4
"""Of a probability; the same network on another device rounds otherwise."""


@dataclass(frozen=True)
class VerifiedScores:
    """What came of it.

    Attributes
    ----------
    checked
        Predictions that were computed again.
    off
        Largest difference of a probability.
    mismatches
        What was found.
    """

    checked: int
    off: float
    mismatches: tuple[Mismatch, ...]


def verify_scores(run: Run) -> VerifiedScores:
    """Check the stored scores of all slides that are up to date; on the CPU, without any slide's pixels."""
    if not run.folder.scores.exists() or not (checkpoint_folder(run) / CARD_NAME).exists():
        return VerifiedScores(0, 0.0, ())
    from wsi_ips.model import load_checkpoint

    try:
        records, (net, _) = predicted(run), load_checkpoint(checkpoint_folder(run))
    except CheckpointError as error:
        return VerifiedScores(0, 0.0, (Mismatch("(model)", str(error)),))
    from wsi_ips.inference.selfcheck import recompute

    offs, found = [0.0], list[Mismatch]()
    with run.progress.stage("verify predictions", len(records), "slides") as advance:
        for record in records:
            advance(1)
            try:
                scores = read_scores(run.folder.scores, record.slide_id)
                again = recompute(scores, net)
            except ScoresError as error:
                found.append(Mismatch(record.slide_id, str(error)))
                continue
            offs.append(again.off)
            found += [Mismatch(record.slide_id, what) for what in _told(run, record, scores, again)]
    return VerifiedScores(len(offs) - 1, max(offs), tuple(found))


def _told(run: Run, record: SlideRecord, scores: SlideScores, again: Recomputed) -> Iterator[str]:
    advice = f"delete {run.folder.scores / record.slide_id} and run `wsi-ips predict`"
    if len(scores.attention_logits) != len(run.index(record)):
        yield f"{len(scores.attention_logits)} scores for {len(run.index(record))} tiles; {advice}"
    if again.off > TOLERANCE:
        yield f"its probability is off by {again.off:.2g} from that of its stored tiles; {advice}"
    if not again.kept_are_best:
        yield f"the kept tiles are not those of the highest stored attention; {advice}"
