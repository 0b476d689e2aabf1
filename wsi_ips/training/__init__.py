"""Training: plain PyTorch, one loop."""

from wsi_ips.training.choosing import LabelledSlide
from wsi_ips.training.loop import Trainer
from wsi_ips.training.record import EpochRecord, best_epoch
from wsi_ips.training.resume import StateFile, StopRequest

__all__ = ["EpochRecord", "LabelledSlide", "StateFile", "StopRequest", "Trainer", "best_epoch"]
