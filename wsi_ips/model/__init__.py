"""The network: encoder, cross-attention, exact selection, checkpoint. Tensors only, never a slide."""

from wsi_ips.model.checkpoint import ModelCard, load_checkpoint, read_card, save_checkpoint
from wsi_ips.model.encoder import EncoderSpec, build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.model.selection import Selection, SlideToScan, scan, selection_score

__all__ = [
    "EncoderSpec",
    "IpsNet",
    "ModelCard",
    "Selection",
    "SlideToScan",
    "build_encoder",
    "encoder_spec",
    "load_checkpoint",
    "read_card",
    "save_checkpoint",
    "scan",
    "selection_score",
]
