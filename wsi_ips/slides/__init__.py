"""Slides: open them, read patches and thumbnails at a physical scale."""

from wsi_ips.slides.array_reader import ArrayReader
from wsi_ips.slides.base import RGB, SlideInfo, SlideReader
from wsi_ips.slides.cache import TileCache
from wsi_ips.slides.direct_reader import DirectReader
from wsi_ips.slides.identity import content_bytes, content_identity
from wsi_ips.slides.opening import Remote, open_slide
from wsi_ips.slides.patch import Overview, read_area, read_overview, read_patch, read_shrunk, read_thumbnail
from wsi_ips.slides.pool import SlidePool

__all__ = [
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
    "open_slide",
    "read_area",
    "read_overview",
    "read_patch",
    "read_shrunk",
    "read_thumbnail",
]
