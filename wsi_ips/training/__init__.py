"""Training: plain PyTorch, one loop."""

from wsi_ips.training.loop import EpochRecord, LabelledSlide, Trainer

__all__ = ["EpochRecord", "LabelledSlide", "Trainer"]
