"""Annotations of people: regions, and the truth per tile they amount to."""

from wsi_ips.annotations.asap import Regions, read_asap, write_asap
from wsi_ips.annotations.truth import tumour_fraction

__all__ = ["Regions", "read_asap", "tumour_fraction", "write_asap"]
