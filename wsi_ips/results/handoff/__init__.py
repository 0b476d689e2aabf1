"""Hand-off packages: everything of one slide for the programs of pathologists, each file checked on the disk.

A module per format; all are made from :class:`ScoreMaps`, whoever scored the tiles.
"""

from wsi_ips.results.handoff.gallery import Choice, choose_tiles, draw_gallery
from wsi_ips.results.handoff.lesions import Lesion, covered_region, find_lesions, not_analysed
from wsi_ips.results.handoff.maps import ScoreMaps
from wsi_ips.results.handoff.package import MANIFEST, Format, Material, stored_package, write_package
from wsi_ips.results.handoff.table import COLUMNS, joined, lesion_table

__all__ = [
    "COLUMNS",
    "MANIFEST",
    "Choice",
    "Format",
    "Lesion",
    "Material",
    "ScoreMaps",
    "choose_tiles",
    "covered_region",
    "draw_gallery",
    "find_lesions",
    "joined",
    "lesion_table",
    "not_analysed",
    "stored_package",
    "write_package",
]
