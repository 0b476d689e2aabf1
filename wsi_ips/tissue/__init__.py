"""Tissue: its mask, how far the mask can be trusted, and artefacts on the slide."""

from wsi_ips.tissue.flags import BITS, FLAGS, Flag, bits_of, flag_tiles
from wsi_ips.tissue.mask import TissueMask, covered, mask_of, outline_of
from wsi_ips.tissue.perceptual_hash import Alike, look_alikes, look_of
from wsi_ips.tissue.segmentation import TissueRules, segment_tissue, with_artifacts
from wsi_ips.tissue.suspicion import remarks_on, suspicion

__all__ = [
    "BITS",
    "FLAGS",
    "Alike",
    "Flag",
    "TissueMask",
    "TissueRules",
    "bits_of",
    "covered",
    "flag_tiles",
    "look_alikes",
    "look_of",
    "mask_of",
    "outline_of",
    "remarks_on",
    "segment_tissue",
    "suspicion",
    "with_artifacts",
]
