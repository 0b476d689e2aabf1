"""Prediction of slides and the stored scores of their tiles."""

from wsi_ips.inference.predict import predict_slide
from wsi_ips.inference.scores import SlideScores, read_scores, stored_fingerprint, write_scores

__all__ = ["SlideScores", "predict_slide", "read_scores", "stored_fingerprint", "write_scores"]
