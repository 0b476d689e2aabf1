"""Training: plain PyTorch, one loop."""

from wsi_ips.training.loop import LabelledSlide, Trainer
from wsi_ips.training.resume import EpochRecord, StateFile, StopRequest

__all__ = ["EpochRecord", "LabelledSlide", "StateFile", "StopRequest", "Trainer"]
