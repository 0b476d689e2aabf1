"""The network: encoder, pooling, exact selection, checkpoint. It works on tensors and never opens a slide.

Names that need torch are loaded on first use: cards and scores can be read where torch is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wsi_ips.model.checkpoint_card import EncoderSpec, ModelCard, NetSettings, read_card
from wsi_ips.model.selection import Selection, SlideToScan, merge, scan, selection_score

if TYPE_CHECKING:
    from wsi_ips.model.checkpoint import load_checkpoint, save_checkpoint
    from wsi_ips.model.encoder_families import build_encoder, encoder_spec
    from wsi_ips.model.net import IpsNet

__all__ = [
    "EncoderSpec",
    "IpsNet",
    "ModelCard",
    "NetSettings",
    "Selection",
    "SlideToScan",
    "build_encoder",
    "encoder_spec",
    "load_checkpoint",
    "merge",
    "read_card",
    "save_checkpoint",
    "scan",
    "selection_score",
]

_HOMES = {
    "IpsNet": "net",
    "build_encoder": "encoder_families",
    "encoder_spec": "encoder_families",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
