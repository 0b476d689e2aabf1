"""What a trained run amounts to on its test slides, for the experiments on learning."""

from __future__ import annotations

import math
import statistics

from wsi_ips.config import Recipe
from wsi_ips.inference import SlideScores, read_scores
from wsi_ips.manifest import read_manifest
from wsi_ips.pipeline.folder import RunFolder
from wsi_ips.tiles import TileIndex, read_index


def figures_of_test(recipe: Recipe, annotated: float) -> dict[str, float]:
    """Figures of the test slides of a run that has been predicted.

    Parameters
    ----------
    recipe
        Of the run.
    annotated
        A tile counts as annotated where more than this share of it lies within an outline.

    Returns
    -------
    dict
        ``accuracy`` of the most probable class; ``log_loss`` in nats; ``kept_annotated``, how many of the annotated
        tiles are kept, of as many as fit in: mean over slides with some.
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
        found += _kept_annotated(scores, read_index(folder.tiles, record.slide_id), annotated)
    figures = {"accuracy": statistics.mean(right), "log_loss": statistics.mean(losses)}
    return figures | ({"kept_annotated": statistics.mean(found)} if found else {})


def _kept_annotated(scores: SlideScores, index: TileIndex, annotated: float) -> list[float]:
    """The share of one slide; empty where no tile is annotated."""
    if index.tumour_fraction is None or not (index.tumour_fraction > annotated).any():
        return []
    is_annotated = index.tumour_fraction > annotated
    return [float(is_annotated[scores.kept].sum() / min(is_annotated.sum(), len(scores.kept)))]
