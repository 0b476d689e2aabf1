"""Tiles: the grid, the stored index, and the stream of patches."""
