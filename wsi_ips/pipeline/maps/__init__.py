"""Heatmaps and what is handed over to pathologists and other programs."""
