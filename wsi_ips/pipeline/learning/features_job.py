"""Features of one slide, from its stored tiles: what a process of the cluster is told to do.

A process keeps its encoder for the next slide.
"""

from __future__ import annotations

from dataclasses import dataclass

from wsi_ips.config import Recipe
from wsi_ips.errors import CheckpointError
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.encoder import Encoder
from wsi_ips.pipeline.learning.encoding import encoder_fingerprint, frozen_encoder
from wsi_ips.pipeline.learning.feature_source import FeatureSource
from wsi_ips.pipeline.prediction.predictor import own_device
from wsi_ips.pipeline.run import Run
from wsi_ips.scanning import ChunkLimit, embed_tiles
from wsi_ips.tiles import write_features

FEATURES_JOB = f"{__name__}:features_job"


@dataclass(frozen=True)
class FeaturesTask:
    """One slide, the recipe for it, and which encoder is meant: the folder of its features and its fingerprint."""

    recipe: Recipe
    record: SlideRecord
    key: str
    encoder: str


def features_job(task: FeaturesTask) -> int:
    """Compute a slide's features unless they are stored already; the number of tiles embedded."""
    record = task.record
    with Run.of_slide(task.recipe, record) as run:
        source = FeatureSource(run, task.key, task.encoder)
        if source.has(record):
            return 0
        encoder, tiles = _encoder(task), run.tiles(record)
        limit = ChunkLimit(task.recipe.compute.chunk_size)
        write_features(
            source.folder,
            record.slide_id,
            embed_tiles(encoder, tiles, compute=task.recipe.compute, limit=limit),
            encoder=encoder.spec.name,
            fingerprint=source.wanted(record),
            tiles=len(tiles.index),
        )
        return len(tiles.index)


_kept: dict[str, Encoder] = {}
"""The encoder of this process by its fingerprint; one at most."""


def _encoder(task: FeaturesTask) -> Encoder:
    if task.encoder not in _kept:
        _kept.clear()
        encoder = frozen_encoder(task.recipe)
        if encoder_fingerprint(encoder) != task.encoder:
            raise CheckpointError(
                f"encoder {encoder.spec.name} has other weights here than where the command runs: install the same "
                "versions of torch and timm, and the same weights, where the workers run"
            )
        _kept[task.encoder] = encoder.to(own_device(task.recipe.compute.device))
    return _kept[task.encoder]
