"""Prediction of slides and the stored scores of their tiles.

Prediction is loaded on first use: stored scores can be shown where torch is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wsi_ips.inference.slide_scores import SlideScores, read_scores, stored_fingerprint, write_scores

if TYPE_CHECKING:
    from wsi_ips.inference.selfcheck import recompute
    from wsi_ips.inference.slide_prediction import predict_slide

__all__ = ["SlideScores", "predict_slide", "read_scores", "recompute", "stored_fingerprint", "write_scores"]

_HOMES = {"predict_slide": "slide_prediction", "recompute": "selfcheck"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
