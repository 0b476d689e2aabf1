"""What a trained run amounts to on its test slides, for the experiments on learning."""

from __future__ import annotations

import math
import statistics

from wsi_ips.config import Recipe
from wsi_ips.evaluation.localisation import TUMOUR_TILE
from wsi_ips.inference import SlideScores, read_scores
from wsi_ips.manifest import read_manifest
from wsi_ips.pipeline.folder import RunFolder
from wsi_ips.tiles import read_index


def test_figures(recipe: Recipe) -> dict[str, float]:
    """Figures of the test slides of a run that has been predicted.

    Returns
    -------
    dict
        ``accuracy`` of the most probable class; ``log_loss`` in nats; ``kept_annotated``, how many of the annotated
        tiles (more than half of a tile within an outline) are kept, of as many as fit in: mean over slides with some.
    """
    folder = RunFolder(recipe.output, recipe.tiles.store)
    records = [
        r for r in read_manifest(recipe.manifest, label_column=recipe.labels.column).records if r.split == "test"
    ]
    right, losses, found = [], [], []
    for record in records:
        scores = read_scores(folder.scores, record.slide_id)
        right.append(scores.label == record.label)
        losses.append(-math.log(max(scores.probability[scores.classes.index(str(record.label))], 1e-12)))
        found += _kept_annotated(scores, read_index(folder.tiles, record.slide_id).tumour_fraction)
    figures = {"accuracy": statistics.mean(right), "log_loss": statistics.mean(losses)}
    return figures | ({"kept_annotated": statistics.mean(found)} if found else {})


def _kept_annotated(scores: SlideScores, fraction) -> list[float]:  # type: ignore[no-untyped-def]
    if fraction is None or not (fraction > TUMOUR_TILE).any():
        return []
    annotated = fraction > TUMOUR_TILE
    return [float(annotated[scores.kept].sum() / min(annotated.sum(), len(scores.kept)))]
