"""Tile coordinates and features of other tools, and tile scores of other models."""
