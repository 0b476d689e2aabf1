"""Tile coordinates and features of other tools, and tile scores of other models."""

from wsi_ips.tiles.interop.coordinate_files import CoordinateFiles, find_coordinates, read_foreign
from wsi_ips.tiles.interop.coordinate_import import imported_index, plan_footprint
from wsi_ips.tiles.interop.feature_tables import (
    TENSOR,
    ForeignFeatures,
    find_features,
    foreign_features,
    read_foreign_features,
    rows_of_tiles,
)
from wsi_ips.tiles.interop.scored_tiles import PlacedScores, ScoredTiles, place_scores, read_scored, with_footprint
from wsi_ips.tiles.interop.tile_formats import TILE_FORMATS, ForeignTiles, write_foreign, write_foreign_features

__all__ = [
    "TENSOR",
    "TILE_FORMATS",
    "CoordinateFiles",
    "ForeignFeatures",
    "ForeignTiles",
    "PlacedScores",
    "ScoredTiles",
    "find_coordinates",
    "find_features",
    "foreign_features",
    "imported_index",
    "place_scores",
    "plan_footprint",
    "read_foreign",
    "read_foreign_features",
    "read_scored",
    "rows_of_tiles",
    "with_footprint",
    "write_foreign",
    "write_foreign_features",
]
