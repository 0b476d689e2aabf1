"""Feature files of CLAM and TRIDENT for the slides of a run, in and out; also CLAM's bare tensors, which need torch."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch

from wsi_ips.errors import FeaturesError
from wsi_ips.manifest import SlideRecord
from wsi_ips.pipeline.cohort import slide_stem
from wsi_ips.pipeline.learning.feature_source import FeatureSource
from wsi_ips.provenance import atomic_path
from wsi_ips.tiles import TileIndex
from wsi_ips.tiles.interop import (
    ExportFormat,
    ForeignFeatures,
    foreign_features,
    read_foreign,
    read_foreign_features,
    write_foreign_features,
)
from wsi_ips.tiles.interop.features import TENSOR


def foreign_of(path: Path, record: SlideRecord) -> ForeignFeatures:
    """Features of a slide in another tool's file.

    Parameters
    ----------
    path
        ``.h5`` of CLAM or TRIDENT, or ``.pt`` of CLAM, whose rows follow the slide's coordinate file.
    record
        The slide.

    Raises
    ------
    FeaturesError
        The file cannot be used.
    TileIndexError
        Its coordinates, or those of the coordinate file, cannot be.
    """
    if path.suffix != TENSOR:
        return read_foreign_features(path)
    if record.coordinates is None:
        raise FeaturesError(
            f"{path}: a bare tensor says not which row is which tile; import the coordinates too (`tiles.imported`), "
            "or give CLAM's folder `h5_files`"
        )
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise FeaturesError(f"{path}: cannot be read as a tensor ({error})") from error
    if not isinstance(values, torch.Tensor):
        raise FeaturesError(f"{path}: holds {type(values).__name__}; a bare tensor is expected, as CLAM writes it")
    return foreign_features(path, values.float().numpy(), read_foreign(record.coordinates).corners_px0)


def write_features_of(
    to: Path, record: SlideRecord, index: TileIndex, source: FeatureSource, kind: ExportFormat
) -> Path | None:
    """Write a slide's stored features for another tool; the feature file, None where there is no tile.

    Raises
    ------
    FeaturesError
        They are not stored, or of other tiles.
    TileIndexError
        The format cannot say where the tiles lie.
    """
    if not len(index):
        return None
    if not source.has(record):
        raise FeaturesError(
            f"slide {record.slide_id}: no features of these tiles; run `wsi-ips run --until features`",
            slide_id=record.slide_id,
        )
    features = source.tiles(record).features
    values = features.rows(np.arange(features.tiles)).astype(np.float32)  # (N, F)
    path = write_foreign_features(to, index, values, kind=kind, name=slide_stem(record), encoder=source.key)
    if path is not None and kind == "clam":
        with atomic_path(path.parent.parent / "pt_files" / path.with_suffix(TENSOR).name) as temporary:
            torch.save(torch.from_numpy(values), temporary)
    return path
