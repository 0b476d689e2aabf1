"""Annotations: regions that people drew, and how much of each tile they cover."""

from wsi_ips.annotations.annotation_files import read_annotation, read_tissue
from wsi_ips.annotations.asap_xml import Regions, read_asap, write_asap
from wsi_ips.annotations.geojson import geojson_of, polygons_of, read_geojson
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
