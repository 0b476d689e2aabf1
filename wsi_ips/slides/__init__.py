"""Slides: open them, read patches and thumbnails at a physical scale."""

from wsi_ips.slides.base import (
    RGB,
    ArrayReader,
    SlideInfo,
    SlideReader,
    level0_position,
    level_pixel,
    scale_remark,
    trusted_mpp,
)
from wsi_ips.slides.direct_reader import DirectReader
from wsi_ips.slides.patch import Overview, read_area, read_overview, read_patch, read_shrunk, read_thumbnail
from wsi_ips.slides.pool import SlidePool, TileCache
from wsi_ips.slides.readers import open_slide
from wsi_ips.slides.source import PATIENT, Remote, content_bytes, content_identity

__all__ = [
    "PATIENT",
    "RGB",
    "ArrayReader",
    "DirectReader",
    "Overview",
    "Remote",
    "SlideInfo",
    "SlidePool",
    "SlideReader",
    "TileCache",
    "content_bytes",
    "content_identity",
    "level0_position",
    "level_pixel",
    "open_slide",
    "read_area",
    "read_overview",
    "read_patch",
    "read_shrunk",
    "read_thumbnail",
    "scale_remark",
    "trusted_mpp",
]
