"""Registry of hand-off formats.

To add one, write a module with a function that writes its files and a function that reads one back, and add an entry to
:data:`HANDOFF_FORMATS`. Imports nothing of the formats: recipes are validated against this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_ips.registry import Entry, Registry

if TYPE_CHECKING:
    from wsi_ips.results.handoff.content import PackageContent, PackageFile

    Write = Callable[[Path, PackageContent], list[PackageFile]]
    Check = Callable[[Path, PackageContent], Mapping[str, Any] | None]


@dataclass(frozen=True)
class HandoffFormat(Entry):
    """A format; ``home`` names the function that writes its files into a folder and returns them."""

    # ``module:function`` that reads one of these files back, compares it with the scores and returns the figures for
    # ``package.json`` (None where there are none); raises HandoffError where they disagree. Empty = no check
    reader: str = ""
    # ``module:function`` that joins the files of all slides, given the folder of all packages and the slide_ids in
    # order. Empty = nothing to join
    cohort: str = ""
    outlines: bool = False  # Whether the format outlines lesions; it then needs probabilities, which have a threshold

    def write(self, folder: Path, content: PackageContent) -> list[PackageFile]:
        """Write the files of the format and return them."""
        write: Write = self.load()
        return write(folder, content)

    def check(self, path: Path, content: PackageContent) -> Mapping[str, Any] | None:
        """Read a file back and return the figures of the comparison.

        Raises
        ------
        HandoffError
            The file disagrees with the scores.
        """
        read: Check | None = _function(self.reader) if self.reader else None
        return read(path, content) if read else None

    def join(self, packages: Path, slide_ids: Sequence[str]) -> None:
        """Join the files of all slides, where the format does that."""
        if self.cohort:
            _function(self.cohort)(packages, slide_ids)


def _function(home: str) -> Any:
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)


HERE = "wsi_ips.results.handoff"
HANDOFF_FORMATS = Registry(
    "hand-off format",
    (
        HandoffFormat(
            "overlays",
            f"{HERE}.pictures:write_overlays",
            "pictures of the maps over the tissue, with sidecars",
            reader=f"{HERE}.pictures:check_overlay",
        ),
        HandoffFormat(
            "ome-tiff",
            f"{HERE}.ome_tiff:write_maps",
            "the maps as numbers, one pixel per cell of the tile grid",
            reader=f"{HERE}.ome_tiff:check_maps",
        ),
        HandoffFormat(
            "geojson",
            f"{HERE}.qupath_geojson:write_best",
            "lesions and the tiles from the threshold on, for QuPath",
            reader=f"{HERE}.qupath_geojson:check_best",
            outlines=True,
        ),
        HandoffFormat(
            "geojson-all-tiles",
            f"{HERE}.qupath_geojson:write_all",
            "lesions and all tiles, for QuPath; large",
            reader=f"{HERE}.qupath_geojson:check_all",
            outlines=True,
        ),
        HandoffFormat(
            "asap",
            f"{HERE}.asap_lesions:write_lesions",
            "outlines of all lesions, for ASAP",
            reader=f"{HERE}.asap_lesions:check_lesions",
            outlines=True,
        ),
        HandoffFormat(
            "lesions",
            f"{HERE}.lesion_table:write_table",
            "table of all lesions: size, score, position",
            cohort=f"{HERE}.lesion_table:join_tables",
            outlines=True,
        ),
        HandoffFormat("gallery", f"{HERE}.pictures:write_gallery", "tiles with the highest and the lowest scores"),
    ),
    group="wsi_ips.handoff_formats",
)
