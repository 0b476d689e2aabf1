"""Results people look at: rasters, overlays, the report. No torch, no pixels of its own.

Names are loaded when they are asked for: tiling draws tissue and needs nothing of what heatmaps and reports need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_ips.results.alignment import alignment_correlation, page_position
    from wsi_ips.results.heatmap import Raster, attention_rank, odds_share, tile_raster
    from wsi_ips.results.overlay import Caption, View, draw_overlay, sidecar, write_overlay
    from wsi_ips.results.report import render_report, write_report
    from wsi_ips.results.report_data import (
        CardSection,
        Figure,
        FlowStep,
        Loss,
        LostLesion,
        MapPicture,
        RecallRow,
        ReportData,
        SlideEntry,
        TopTile,
    )
    from wsi_ips.results.report_plots import History
    from wsi_ips.results.tissue import Tiling, draw_tissue

_HOMES = {
    "alignment": ("alignment_correlation", "page_position"),
    "heatmap": ("Raster", "attention_rank", "odds_share", "tile_raster"),
    "overlay": ("Caption", "View", "draw_overlay", "sidecar", "write_overlay"),
    "report": ("render_report", "write_report"),
    "report_data": (
        "CardSection",
        "Figure",
        "FlowStep",
        "Loss",
        "LostLesion",
        "MapPicture",
        "RecallRow",
        "ReportData",
        "SlideEntry",
        "TopTile",
    ),
    "report_plots": ("History",),
    "tissue": ("Tiling", "draw_tissue"),
}

__all__ = [
    "Caption",
    "CardSection",
    "Figure",
    "FlowStep",
    "History",
    "Loss",
    "LostLesion",
    "MapPicture",
    "Raster",
    "RecallRow",
    "ReportData",
    "SlideEntry",
    "Tiling",
    "TopTile",
    "View",
    "alignment_correlation",
    "attention_rank",
    "draw_overlay",
    "draw_tissue",
    "odds_share",
    "page_position",
    "render_report",
    "sidecar",
    "tile_raster",
    "write_overlay",
    "write_report",
]


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
