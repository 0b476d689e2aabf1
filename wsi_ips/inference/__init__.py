"""Prediction of slides and the stored scores of their tiles."""
