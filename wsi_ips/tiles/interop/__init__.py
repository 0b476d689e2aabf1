"""Tile coordinates of other tools, and scores of other models.

Read coordinates of CLAM, TRIDENT, WSInfer and AtlasPatch, write those of CLAM and TRIDENT.
"""

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
    "ForeignTiles",
    "PlacedScores",
    "ScoredTiles",
    "find_coordinates",
    "imported_index",
    "place_scores",
    "read_foreign",
    "read_scored",
    "with_footprint",
    "write_foreign",
]
