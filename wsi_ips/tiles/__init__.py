"""Tiles: the grid, the stored index, and the stream of patches."""

from wsi_ips.tiles.feature_store import (
    FeatureStream,
    FeatureTiles,
    StoredFeatures,
    features_fingerprint,
    open_features,
    write_features,
)
from wsi_ips.tiles.index import IndexOrigin, TileIndex, TileRules, build_index, tile_grid
from wsi_ips.tiles.recall import Recall, tissue_recall
from wsi_ips.tiles.store import read_header, read_index, slide_ids, stored_fingerprint, stored_row, write_index
from wsi_ips.tiles.stream import PatchChunk, PatchStream, SlideTiles, read_tiles

__all__ = [
    "FeatureStream",
    "FeatureTiles",
    "IndexOrigin",
    "PatchChunk",
    "PatchStream",
    "Recall",
    "SlideTiles",
    "StoredFeatures",
    "TileIndex",
    "TileRules",
    "build_index",
    "features_fingerprint",
    "open_features",
    "read_header",
    "read_index",
    "read_tiles",
    "slide_ids",
    "stored_fingerprint",
    "stored_row",
    "tile_grid",
    "tissue_recall",
    "write_features",
    "write_index",
]
