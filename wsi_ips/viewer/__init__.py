"""See it: a local server and a page that shows slides, maps, tiles and reviews in the browser. No torch."""

from wsi_ips.viewer.collection import Collection, Detail, Download, Entry, Layer, TileTable, eight_bits
from wsi_ips.viewer.files import SlideFiles, slide_version
from wsi_ips.viewer.reviews import Review, ReviewStore
from wsi_ips.viewer.serve import ServerOptions, application, serve

__all__ = [
    "Collection",
    "Detail",
    "Download",
    "Entry",
    "Layer",
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
