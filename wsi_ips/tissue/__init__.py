"""Tissue: where it is on a slide."""

from wsi_ips.tissue.mask import TissueMask
from wsi_ips.tissue.segmentation import segment_tissue

__all__ = ["TissueMask", "segment_tissue"]
