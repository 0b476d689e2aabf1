"""Results people look at: rasters, overlays, the report. No torch, no pixels of its own."""

from wsi_ips.results.alignment import alignment_correlation, page_position
from wsi_ips.results.heatmap import Raster, attention_rank, tile_raster
from wsi_ips.results.overlay import Caption, View, draw_overlay, sidecar, write_overlay
from wsi_ips.results.report import Figure, ReportData, SlideEntry, TopTile, render_report, write_report
from wsi_ips.results.tissue import draw_tissue

__all__ = [
    "Caption",
    "Figure",
    "Raster",
    "ReportData",
    "SlideEntry",
    "TopTile",
    "View",
    "alignment_correlation",
    "attention_rank",
    "draw_overlay",
    "draw_tissue",
    "page_position",
    "render_report",
    "sidecar",
    "tile_raster",
    "write_overlay",
    "write_report",
]
