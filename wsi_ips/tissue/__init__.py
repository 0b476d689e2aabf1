"""Tissue: where it is on a slide, how sure that is, and what lies on it."""

from wsi_ips.tissue.flags import BITS, FLAGS, Flag, bits_of, flag_names, flag_tiles
from wsi_ips.tissue.look import Alike, look_alikes, look_of
from wsi_ips.tissue.mask import TissueMask
from wsi_ips.tissue.outline import covered, mask_of, outline_of
from wsi_ips.tissue.segmentation import see, segment_tissue
from wsi_ips.tissue.suspicion import remarks_on, suspicion

__all__ = [
    "BITS",
    "FLAGS",
    "Alike",
    "Flag",
    "TissueMask",
    "bits_of",
    "covered",
    "flag_names",
    "flag_tiles",
    "look_alikes",
    "look_of",
    "mask_of",
    "outline_of",
    "remarks_on",
    "see",
    "segment_tissue",
    "suspicion",
]
