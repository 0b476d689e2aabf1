"""Tissue: its mask, how far the mask can be trusted, and artefacts on the slide."""
