"""Results people look at: rasters, overlays, the report. No torch, no pixels of its own.

Names are loaded when they are asked for: tiling draws tissue and needs neither matplotlib nor the report.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "Caption": "overlay",
    "Figure": "report",
    "Raster": "heatmap",
    "ReportData": "report",
    "SlideEntry": "report",
    "TopTile": "report",
    "View": "overlay",
    "alignment_correlation": "alignment",
    "attention_rank": "heatmap",
    "draw_overlay": "overlay",
    "draw_tissue": "tissue",
    "page_position": "alignment",
    "render_report": "report",
    "sidecar": "overlay",
    "tile_raster": "heatmap",
    "write_overlay": "overlay",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
