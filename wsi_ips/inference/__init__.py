"""Prediction of slides and the stored scores of their tiles.

What predicts is loaded when it is asked for: stored scores are shown where torch is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wsi_ips.inference.scores import SlideScores, read_scores, stored_fingerprint, write_scores

if TYPE_CHECKING:
    from wsi_ips.inference.predict import predict_slide
    from wsi_ips.inference.selfcheck import recompute, recomputed_probability

__all__ = [
    "SlideScores",
    "predict_slide",
    "read_scores",
    "recompute",
    "recomputed_probability",
    "stored_fingerprint",
    "write_scores",
]

_HOMES = {"predict_slide": "predict", "recompute": "selfcheck", "recomputed_probability": "selfcheck"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
