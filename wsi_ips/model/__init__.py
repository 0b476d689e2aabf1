"""The network: encoder, cross-attention, exact selection, checkpoint. Tensors only, never a slide."""

from wsi_ips.model.checkpoint import ModelCard, load_checkpoint, read_card, save_checkpoint
from wsi_ips.model.encoder import EncoderSpec, build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.model.rules import selection_rule, selection_score
from wsi_ips.model.selection import Selection, SlideToScan, merge, scan

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
