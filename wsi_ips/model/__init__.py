"""The network: encoder, cross-attention, exact selection, checkpoint. Tensors only, never a slide.

What needs torch is loaded when it is asked for: cards and scores are read where it is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wsi_ips.model.card import EncoderSpec, ModelCard, read_card
from wsi_ips.model.rules import selection_rule, selection_score
from wsi_ips.model.selection import Selection, SlideToScan, merge, scan

if TYPE_CHECKING:
    from wsi_ips.model.checkpoint import load_checkpoint, save_checkpoint
    from wsi_ips.model.encoder import build_encoder, encoder_spec
    from wsi_ips.model.net import IpsNet

__all__ = [
    "EncoderSpec",
    "IpsNet",
    "ModelCard",
    "Selection",
    "SlideToScan",
    "build_encoder",
    "encoder_spec",
    "load_checkpoint",
    "merge",
    "read_card",
    "save_checkpoint",
    "scan",
    "selection_rule",
    "selection_score",
]

_HOMES = {
    "IpsNet": "net",
    "build_encoder": "encoder",
    "encoder_spec": "encoder",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
