"""Tiles: the grid, the stored index, and the stream of patches."""

from wsi_ips.tiles.grid import tile_grid
from wsi_ips.tiles.index import TileIndex, build_index
from wsi_ips.tiles.recall import Recall, tissue_recall
from wsi_ips.tiles.store import read_index, slide_ids, stored_fingerprint, stored_row, write_index
from wsi_ips.tiles.stream import PatchChunk, PatchStream, SlideTiles, read_tiles

__all__ = [
    "PatchChunk",
    "PatchStream",
    "Recall",
    "SlideTiles",
    "TileIndex",
    "build_index",
    "read_index",
    "read_tiles",
    "slide_ids",
    "stored_fingerprint",
    "stored_row",
    "tile_grid",
    "tissue_recall",
    "write_index",
]
