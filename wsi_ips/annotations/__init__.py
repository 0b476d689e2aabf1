"""Annotations: regions that people drew, and how much of each tile they cover."""

from wsi_ips.annotations.annotation_files import (
    Regions,
    geojson_of,
    polygons_of,
    read_annotation,
    read_asap,
    read_geojson,
    read_tissue,
    write_asap,
)
from wsi_ips.annotations.region_coverage import region_mask, tumour_fraction

__all__ = [
    "Regions",
    "geojson_of",
    "polygons_of",
    "read_annotation",
    "read_asap",
    "read_geojson",
    "read_tissue",
    "region_mask",
    "tumour_fraction",
    "write_asap",
]
