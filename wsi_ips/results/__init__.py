"""Results for people: score maps, pictures, hand-off files, the report. No torch.

Names are imported on first use, so that tiling, which draws tissue, does not load what heatmaps and reports need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_ips.results.alignment import alignment_correlation, page_position
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
    from wsi_ips.results.score_raster import Raster, tile_raster
    from wsi_ips.results.score_values import attention_rank
    from wsi_ips.results.tissue_picture import Tiling, draw_tissue

_HOMES = {
    "alignment": ("alignment_correlation", "page_position"),
    "score_raster": ("Raster", "tile_raster"),
    "score_values": ("attention_rank",),
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
