"""Viewer: a local server and a page that shows slides, maps, tiles and reviews in the browser. No torch."""

from wsi_ips.viewer.collection import (
    Collection,
    Column,
    Detail,
    Download,
    Entry,
    Layer,
    Look,
    TileTable,
    eight_bits,
)
from wsi_ips.viewer.reviews import Review, ReviewStore
from wsi_ips.viewer.serve import ServerOptions, application, serve
from wsi_ips.viewer.slide_files import SlideFiles, slide_version

__all__ = [
    "Collection",
    "Column",
    "Detail",
    "Download",
    "Entry",
    "Layer",
    "Look",
    "Review",
    "ReviewStore",
    "ServerOptions",
    "SlideFiles",
    "TileTable",
    "application",
    "eight_bits",
    "serve",
    "slide_version",
]
