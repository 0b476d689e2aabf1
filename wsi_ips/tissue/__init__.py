"""Tissue: where it is on a slide."""

from wsi_ips.tissue.look import Alike, look_alikes, look_of
from wsi_ips.tissue.mask import TissueMask
from wsi_ips.tissue.segmentation import segment_tissue

__all__ = ["Alike", "TissueMask", "look_alikes", "look_of", "segment_tissue"]
