"""Figures of predictions: slides, lesions, patients."""
