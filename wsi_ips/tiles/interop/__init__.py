"""Tile coordinates and features of other tools, and scores of other models.

Read coordinates of CLAM, TRIDENT, WSInfer and AtlasPatch and features of CLAM and TRIDENT, write both of these two.
"""

from wsi_ips.tiles.interop.features import (
    ForeignFeatures,
    find_features,
    foreign_features,
    read_foreign_features,
    rows_of_tiles,
    write_foreign_features,
)
from wsi_ips.tiles.interop.folder import CoordinateFiles, find_coordinates
from wsi_ips.tiles.interop.foreign import ForeignTiles
from wsi_ips.tiles.interop.importing import imported_index
from wsi_ips.tiles.interop.reading import read_foreign
from wsi_ips.tiles.interop.scores import PlacedScores, ScoredTiles, place_scores, read_scored, with_footprint
from wsi_ips.tiles.interop.writing import FORMATS, ExportFormat, write_foreign

__all__ = [
    "FORMATS",
    "CoordinateFiles",
    "ExportFormat",
    "ForeignFeatures",
    "ForeignTiles",
    "PlacedScores",
    "ScoredTiles",
    "find_coordinates",
    "find_features",
    "foreign_features",
    "imported_index",
    "place_scores",
    "read_foreign",
    "read_foreign_features",
    "read_scored",
    "rows_of_tiles",
    "with_footprint",
    "write_foreign",
    "write_foreign_features",
]
