"""Registry of hand-off formats.

To add one, write a module with a function that writes its files and reads each back, and add an entry to
:data:`HANDOFF_FORMATS`. Imports nothing of the formats: recipes are validated against this table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_ips.registry import Entry, Registry

if TYPE_CHECKING:
    from wsi_ips.results.handoff_package import PackageContent, PackageFile


@dataclass(frozen=True)
class HandoffFormat(Entry):
    """A format; ``home`` names the function that writes its files into a folder, reads them back and returns them."""

    # ``module:function`` that joins the files of all slides, given the folder of all packages and the slide_ids in
    # order; empty = nothing to join
    cohort: str = ""
    outlines: bool = False  # it outlines lesions, and then needs probabilities, which have a threshold

    def write(self, folder: Path, content: PackageContent) -> list[PackageFile]:
        """Write the files of the format; raises HandoffError where one disagrees with the scores."""
        files: list[PackageFile] = self.load()(folder, content)
        return files

    def join(self, packages: Path, slide_ids: Sequence[str]) -> None:
        """Join the files of all slides, where the format does that."""
        if self.cohort:
            replace(self, home=self.cohort).load()(packages, slide_ids)


HERE = "wsi_ips.results"
HANDOFF_FORMATS = Registry(
    "hand-off format",
    (
        HandoffFormat(
            "overlays", f"{HERE}.handoff_pictures:write_overlays", "pictures of the maps over the tissue, with sidecars"
        ),
        HandoffFormat(
            "ome-tiff", f"{HERE}.ome_tiff:write_maps", "the maps as numbers, one pixel per cell of the tile grid"
        ),
        HandoffFormat(
            "geojson",
            f"{HERE}.qupath_geojson:write_best",
            "lesions and the tiles from the threshold on, for QuPath",
            outlines=True,
        ),
        HandoffFormat(
            "geojson-all-tiles",
            f"{HERE}.qupath_geojson:write_all",
            "lesions and all tiles, for QuPath; large",
            outlines=True,
        ),
        HandoffFormat("asap", f"{HERE}.lesion_files:write_asap", "outlines of all lesions, for ASAP", outlines=True),
        HandoffFormat(
            "lesions",
            f"{HERE}.lesion_files:write_table",
            "table of all lesions: size, score, position",
            cohort=f"{HERE}.lesion_files:join_tables",
            outlines=True,
        ),
        HandoffFormat(
            "gallery", f"{HERE}.handoff_pictures:write_gallery", "tiles with the highest and the lowest scores"
        ),
    ),
    group="wsi_ips.handoff_formats",
)
